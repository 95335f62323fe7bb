"""The embedded engine: batched decoding with a transformers model in this process.

The fallback where vLLM is not installed, and the reference the other engines are compared with. The prompt is
computed once per problem and its cache shared by all samples; rows that ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from rlreason.data.prompts import PromptFormat, RenderedPrompt, stop_token_ids
from rlreason.sampler.draw import uniforms
from rlreason.types import Completion, Group, Problem, SamplingParams

#: Rows that ended are dropped from the batch once they are this share of it.
COMPACT_SHARE = 0.25


@dataclass(slots=True)
class _Decoding:
    """Rows still being decoded; R rows. ``row_R`` are their places in the output."""

    row_R: Tensor
    cache: DynamicCache
    present_RT: Tensor
    position_R: Tensor
    logits_RV: Tensor


class TransformersSampler:
    """Samples with its own copy of the model, so that ``publish`` is a real delivery like any other engine's."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt_format: PromptFormat,
        max_rows: int = 512,
        threads: int = 1,
    ) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._format = prompt_format
        self._max_rows = max_rows
        self._threads = threads if model.device.type == "cpu" else 1
        self._stop_ids = torch.tensor(sorted(stop_token_ids(tokenizer)), device=model.device)
        self._version = 0

    @property
    def version(self) -> int:
        """Version of the weights that the next token will be drawn with."""
        return self._version

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Copy ``weights`` (a state dict of the policy) into the sampling model. Raises where names differ."""
        self._model.load_state_dict(dict(weights), strict=True)
        self._version = version

    def sample(self, problems: Sequence[Problem], params: SamplingParams) -> list[Group]:
        """One group per problem, in order; see ``rlreason.types.Sampler``."""
        per_batch = max(1, self._max_rows // params.samples_per_problem)
        prompts = [self._format.render(problem, self._tokenizer) for problem in problems]
        # Prompts of similar length share a batch: less padding. The draws do not depend on it.
        order = sorted(range(len(problems)), key=lambda index: len(prompts[index].ids))
        chunks = [order[start : start + per_batch] for start in range(0, len(order), per_batch)]

        def draw(chunk: list[int]) -> list[tuple[Completion, ...]]:
            return self._sample_batch([problems[i] for i in chunk], [prompts[i] for i in chunk], params)

        completions: dict[int, tuple[Completion, ...]] = {}
        with ThreadPoolExecutor(self._threads) as pool:
            for chunk, drawn in zip(chunks, pool.map(draw, chunks), strict=True):
                completions.update(zip(chunk, drawn, strict=True))
        return [
            Group(
                group_id=f"{params.stream}/{problem.id}",
                problem=problem,
                completions_G=completions[index],
            )
            for index, problem in enumerate(problems)
        ]

    @torch.inference_mode()
    def _sample_batch(
        self, problems: list[Problem], prompts: list[RenderedPrompt], params: SamplingParams
    ) -> list[tuple[Completion, ...]]:
        samples = params.samples_per_problem
        state = self._prefill(prompts, samples)
        rows = len(problems) * samples
        uniform_RT = self._uniforms(problems, params)
        token_ids: Tensor = torch.zeros((rows, params.max_tokens), dtype=torch.long, device=self._model.device)
        logprobs = torch.zeros((rows, params.max_tokens), dtype=torch.float32, device=self._model.device)
        lengths = np.full(rows, params.max_tokens)
        for step in range(params.max_tokens):
            chosen_R, logprob_R = choose(state.logits_RV, uniform_RT[state.row_R, step], params)
            token_ids[state.row_R, step] = chosen_R
            logprobs[state.row_R, step] = logprob_R
            ended_R = torch.isin(chosen_R, self._stop_ids)
            newly_R = ended_R & (torch.from_numpy(lengths).to(ended_R.device)[state.row_R] == params.max_tokens)
            lengths[state.row_R[newly_R].cpu().numpy()] = step + 1
            live_R = torch.from_numpy(lengths).to(ended_R.device)[state.row_R] == params.max_tokens
            if step + 1 == params.max_tokens or not bool(live_R.any()):
                break
            if float(live_R.float().mean()) <= 1.0 - COMPACT_SHARE:
                chosen_R = chosen_R[live_R]
                state = _compact(state, live_R)
            state = self._decode(state, chosen_R)
        return self._collect(prompts, samples, token_ids, logprobs, lengths)

    def _uniforms(self, problems: list[Problem], params: SamplingParams) -> Tensor:
        if params.temperature == 0.0:
            return torch.zeros((1, 1)).expand(len(problems) * params.samples_per_problem, params.max_tokens)
        table = [
            uniforms(params.seed, params.stream, problem.id, sample, params.max_tokens)
            for problem in problems
            for sample in range(params.samples_per_problem)
        ]
        return torch.from_numpy(np.stack(table)).to(self._model.device)

    def _prefill(self, prompts: list[RenderedPrompt], samples: int) -> _Decoding:
        """Left-padded prompts through the model once, then every row repeated ``samples`` times."""
        device = self._model.device
        width = max(len(prompt.ids) for prompt in prompts)
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p.ids)) + list(p.ids) for p in prompts], device=device)
        present = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=device)
        positions = (present.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        output = self._model(
            input_ids=ids,
            attention_mask=present,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_repeat_interleave(samples)
        return _Decoding(
            row_R=torch.arange(len(prompts) * samples, device=device),
            cache=cache,
            present_RT=present.repeat_interleave(samples, dim=0),
            position_R=positions[:, -1].repeat_interleave(samples) + 1,
            logits_RV=output.logits[:, -1].float().repeat_interleave(samples, dim=0),
        )

    def _decode(self, state: _Decoding, chosen_R: Tensor) -> _Decoding:
        present_RT = torch.cat([state.present_RT, torch.ones_like(state.present_RT[:, :1])], dim=1)
        output = self._model(
            input_ids=chosen_R.unsqueeze(1),
            attention_mask=present_RT,
            position_ids=state.position_R.unsqueeze(1),
            past_key_values=state.cache,
            use_cache=True,
        )
        return _Decoding(
            row_R=state.row_R,
            cache=state.cache,
            present_RT=present_RT,
            position_R=state.position_R + 1,
            logits_RV=output.logits[:, -1].float(),
        )

    def _collect(
        self, prompts: list[RenderedPrompt], samples: int, token_ids: Tensor, logprobs: Tensor, lengths: np.ndarray
    ) -> list[tuple[Completion, ...]]:
        ids_rows, logprob_rows = token_ids.tolist(), logprobs.tolist()
        stops = set(self._stop_ids.tolist())
        completions = []
        for row, length in enumerate(lengths.tolist()):
            ids = tuple(ids_rows[row][:length])
            stopped = ids[-1] in stops
            reason: Literal["stop", "length"] = "stop" if stopped else "length"
            prompt = prompts[row // samples]
            completions.append(
                Completion(
                    prompt_ids=prompt.ids,
                    token_ids=ids,
                    logprobs_T=tuple(logprob_rows[row][:length]),
                    text=self._tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=False),
                    finish_reason=reason,
                    prefill=prompt.prefill,
                    policy_version_min=self._version,
                    policy_version_max=self._version,
                )
            )
        return [tuple(completions[i : i + samples]) for i in range(0, len(completions), samples)]


def choose(logits_RV: Tensor, uniform_R: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """(token [R], its float32 log-probability under the sampling distribution [R]).

    Inverse-CDF sampling in vocabulary order with one given uniform number per row; temperature 0 takes the most
    likely token and reports its log-probability at temperature 1.
    """
    if params.temperature == 0.0:
        logprobs_RV = torch.log_softmax(logits_RV, dim=-1)
        chosen_R = logits_RV.argmax(dim=-1)
    else:
        logprobs_RV = torch.log_softmax(_filtered(logits_RV / params.temperature, params), dim=-1)
        cdf_RV = logprobs_RV.double().exp().cumsum(dim=-1)
        target_R = (uniform_R.to(cdf_RV) * cdf_RV[:, -1]).unsqueeze(1)
        chosen_R = torch.searchsorted(cdf_RV, target_R, right=True).squeeze(1).clamp(max=cdf_RV.shape[1] - 1)
    return chosen_R, logprobs_RV.gather(1, chosen_R.unsqueeze(1)).squeeze(1)


def _filtered(logits_RV: Tensor, params: SamplingParams) -> Tensor:
    """Logits with everything outside top-k and the top-p nucleus (Holtzman et al. 2020) at −inf."""
    if params.top_k == 0 and params.top_p >= 1.0:
        return logits_RV
    order_RV = logits_RV.argsort(dim=-1, descending=True)
    sorted_RV = logits_RV.gather(1, order_RV)
    keep_RV = torch.ones_like(sorted_RV, dtype=torch.bool)
    if params.top_k:
        keep_RV[:, params.top_k :] = False
    if params.top_p < 1.0:
        probabilities_RV = sorted_RV.masked_fill(~keep_RV, -torch.inf).softmax(dim=-1)
        keep_RV &= probabilities_RV.cumsum(dim=-1) - probabilities_RV < params.top_p
    return torch.full_like(logits_RV, -torch.inf).scatter(1, order_RV, sorted_RV.masked_fill(~keep_RV, -torch.inf))


def _compact(state: _Decoding, live_R: Tensor) -> _Decoding:
    index = live_R.nonzero().squeeze(1)
    state.cache.batch_select_indices(index)
    return _Decoding(
        row_R=state.row_R[index],
        cache=state.cache,
        present_RT=state.present_RT[index],
        position_R=state.position_R[index],
        logits_RV=state.logits_RV[index],
    )
