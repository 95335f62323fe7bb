"""The embedded engine: batched decoding with a transformers model in this process.

The fallback where vLLM is not installed, and the reference the other engines are compared with. The prompt is
computed once per problem and its cache shared by all samples; rows that ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from rlreason.sampler.decoding import ATTENTION, growing_cache
from rlreason.sampler.delivery import DeliveryError
from rlreason.sampler.draw import uniforms
from rlreason.sampler.jobs import Drawn, EngineSpec, Job, Opinion, Progress, Sample
from rlreason.sampler.trace import Trace
from rlreason.types import SamplingParams

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


class TransformersEngine:
    """``rlreason.sampler.jobs.Engine`` with a model of its own. An engine step draws one batch of groups to the end,
    so weights never change within a group."""

    def __init__(self, spec: EngineSpec, model: PreTrainedModel | None = None) -> None:
        """``model``: taken over as it is; by default built from the spec, with random weights until ``load``."""
        self._model = build(spec) if model is None else model.eval()
        self._pad_id = spec.pad_id
        self._max_rows = spec.max_rows
        self._threads = spec.threads if self._model.device.type == "cpu" else 1
        self._stop_ids = torch.tensor(sorted(spec.stop_ids), device=self._model.device)
        self._version = 0
        self._waiting: list[Job] = []

    def submit(self, jobs: Sequence[Job]) -> None:
        """See ``Engine.submit``."""
        self._waiting += jobs

    def advance(self, seconds: float, steps: int | None = None) -> Progress:
        """See ``Engine.advance``: here all that waits is drawn in one step."""
        del seconds, steps
        jobs, self._waiting = self._waiting, []
        # Prompts of similar length share a batch: less padding. The draws do not depend on it.
        order = sorted(range(len(jobs)), key=lambda at: (_how(jobs[at].params), len(jobs[at].prompt_ids)))
        chunks: list[list[int]] = []
        for at in order:
            last = jobs[chunks[-1][-1]] if chunks else None
            full = last is None or (len(chunks[-1]) + 1) * last.params.samples_per_problem > self._max_rows
            if last is None or full or _how(last.params) != _how(jobs[at].params):
                chunks.append([])
            chunks[-1].append(at)

        def draw(chunk: list[int]) -> list[tuple[Sample, ...]]:
            return self._sample_batch([jobs[at] for at in chunk])

        drawn: dict[int, tuple[Sample, ...]] = {}
        with ThreadPoolExecutor(self._threads) as pool:
            for chunk, samples in zip(chunks, pool.map(draw, chunks), strict=True):
                drawn.update(zip(chunk, samples, strict=True))
        return Progress(
            drawn=tuple(Drawn(key=job.key, samples_G=drawn[at]) for at, job in enumerate(jobs)), steps=int(bool(jobs))
        )

    def load(self, weights: Mapping[str, Tensor], version: int) -> tuple[str, ...]:
        """See ``Engine.load``."""
        result = self._model.load_state_dict(dict(weights), strict=False)
        if result.unexpected_keys:
            raise DeliveryError(f"version {version}: the model has no {', '.join(result.unexpected_keys)}")
        self._version = version
        own = self._model.state_dict()
        filled = {own[name].data_ptr() for name in weights}  # a tied tensor arrives once, under one of its names
        return tuple(sorted(name for name in result.missing_keys if own[name].data_ptr() not in filled))

    @torch.inference_mode()
    def probe(self, prompts: Sequence[tuple[int, ...]], count: int) -> tuple[Opinion, ...]:
        """See ``Engine.probe``."""
        return tuple(_opinion(next_logprobs(self._model, prompt), count) for prompt in prompts)

    def module_outputs(self, prompt_ids: tuple[int, ...]) -> Mapping[str, Tensor]:
        """See ``Engine.module_outputs``."""
        return module_outputs(self._model, prompt_ids)

    def sleep(self) -> None:
        """Nothing to give back: between two steps only the weights are held."""

    def wake(self) -> None:
        """Nothing to take."""

    def abort(self) -> None:
        """See ``Engine.abort``."""
        self._waiting.clear()

    def close(self) -> None:
        """Nothing beside the model, which goes with the engine."""

    @torch.inference_mode()
    def _sample_batch(self, jobs: list[Job]) -> list[tuple[Sample, ...]]:
        params = jobs[0].params
        samples = params.samples_per_problem
        state = self._prefill([job.prompt_ids for job in jobs], samples)
        rows = len(jobs) * samples
        uniform_RT = self._uniforms(jobs)
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
        return self._collect(samples, token_ids, logprobs, lengths)

    def _uniforms(self, jobs: list[Job]) -> Tensor:
        params = jobs[0].params
        if params.temperature == 0.0:
            return torch.zeros((1, 1)).expand(len(jobs) * params.samples_per_problem, params.max_tokens)
        table = [
            uniforms(job.params.seed, job.params.stream, job.problem_id, sample, params.max_tokens)
            for job in jobs
            for sample in range(params.samples_per_problem)
        ]
        return torch.from_numpy(np.stack(table)).to(self._model.device)

    def _prefill(self, prompts: list[tuple[int, ...]], samples: int) -> _Decoding:
        """Left-padded prompts through the model once, then every row repeated ``samples`` times."""
        device = self._model.device
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[self._pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
        present = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        positions = (present.cumsum(dim=1) - 1).clamp(min=0)
        cache = growing_cache(self._model.config)
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
        self, samples: int, token_ids: Tensor, logprobs: Tensor, lengths: np.ndarray
    ) -> list[tuple[Sample, ...]]:
        ids_rows, logprob_rows = token_ids.tolist(), logprobs.tolist()
        stops = set(self._stop_ids.tolist())
        drawn = [
            Sample(
                token_ids=tuple(ids_rows[row][:length]),
                logprobs_T=tuple(logprob_rows[row][:length]),
                stopped=ids_rows[row][length - 1] in stops,
                versions_T=(self._version,) * length,
            )
            for row, length in enumerate(lengths.tolist())
        ]
        return [tuple(drawn[i : i + samples]) for i in range(0, len(drawn), samples)]


def _how(params: SamplingParams) -> tuple[float, ...]:
    """What groups of one batch must share."""
    return (params.temperature, params.top_p, params.top_k, params.max_tokens, params.samples_per_problem)


def build(spec: EngineSpec) -> PreTrainedModel:
    """The model of ``spec.model`` on this process's accelerator, else the CPU, with whatever weights."""
    config = AutoConfig.for_model(**dict(spec.model))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec.dtype), attn_implementation=ATTENTION)
    model.requires_grad_(requires_grad=False)
    return cast(PreTrainedModel, model.to(device).eval())


@torch.inference_mode()
def next_logprobs(model: PreTrainedModel, prompt_ids: tuple[int, ...]) -> Tensor:
    """log π of the token after the prompt, [V], float32, at temperature 1."""
    ids = torch.tensor([prompt_ids], device=model.device)
    return torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, -1].float(), dim=-1)


def _opinion(logprobs_V: Tensor, count: int) -> Opinion:
    values, places = logprobs_V.topk(count)
    return Opinion(token_ids=tuple(places.tolist()), logprobs=tuple(values.tolist()))


@torch.inference_mode()
def module_outputs(model: PreTrainedModel, prompt_ids: tuple[int, ...]) -> dict[str, Tensor]:
    """See ``Engine.module_outputs``, for any transformers model."""
    trace = Trace(model)
    model(input_ids=torch.tensor([prompt_ids], device=model.device), use_cache=False)
    return trace.end()


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
