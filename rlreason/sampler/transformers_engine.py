"""The embedded engine: batched decoding with a transformers model in this process.

The fallback where vLLM is not installed, and the reference the other engines are compared with. The prompt is
computed once per group and its cache shared by all samples; rows that ended leave the batch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.initialization import no_init_weights

from rlreason.delivery.packing import DeliveryError, few
from rlreason.routing import RoutedPass, check_routing, options_of, widen_biases
from rlreason.sampler.decoding import ATTENTION, check_room, growing_cache
from rlreason.sampler.draw import uniforms
from rlreason.sampler.expert_recorder import ExpertRecorder
from rlreason.sampler.jobs import Drawn, EngineSpec, Job, ProbeAnswer, Progress
from rlreason.sampler.recording import SetRecorder
from rlreason.sampler.trace import Trace
from rlreason.types import Completion, SamplingParams
from rlreason.wide_routers import widen_routers

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
    #: Of the tokens that gave ``logits_RV``, [R, L, K], where they are asked for.
    experts_RLK: Tensor | None = None


class TransformersEngine:
    """``rlreason.sampler.jobs.Engine`` with a model of its own. An engine step draws all that waits to the end, so
    weights never change within a completion."""

    def __init__(self, spec: EngineSpec, model: PreTrainedModel | None = None) -> None:
        """``model``: taken over as it is; by default built from the spec, with random weights until ``load``."""
        self._model = build(spec) if model is None else model.eval()
        self._spec = spec
        self._pad_id = spec.pad_id
        self._max_rows = spec.max_rows
        self._threads = spec.threads if self._model.device.type == "cpu" else 1
        self._stop_ids = torch.tensor(sorted(spec.stop_ids), device=self._model.device)
        if spec.experts:
            check_routing(self._model, "the sampler is to say which experts its tokens went to")
        self._version = 0
        self._waiting: list[Job] = []
        #: Set: threads end at the next token. One for each ``advance``.
        self._stop = threading.Event()

    def submit(self, jobs: Sequence[Job]) -> None:
        """See ``Engine.submit``. Raises UsageError for a prompt that leaves no room for its answer."""
        check_room(self._spec, jobs)
        self._waiting += jobs

    def advance(self, seconds: float, steps: int | None = None) -> Progress:
        """See ``Engine.advance``: here all that waits is drawn in one step. An exception, such as a signal's, ends the
        drawing at the next token."""
        del seconds, steps
        jobs, self._waiting = self._waiting, []
        stop = self._stop = threading.Event()
        drawn: dict[str, Completion] = {}
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                for completions in pool.map(lambda batch: self._sample_batch(batch, stop), self._batches(jobs)):
                    drawn.update(completions)
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return Progress(
            drawn=tuple(Drawn(key=job.key, completion=drawn[job.key]) for job in jobs if job.key in drawn),
            steps=int(bool(jobs)),
        )

    def _batches(self, jobs: Sequence[Job]) -> list[list[list[Job]]]:
        """Whole groups that are decoded together, at most ``max_rows`` jobs where a group is not larger, and no more
        than leave every thread some.

        Prompts of similar length share a batch: less padding. The draws do not depend on it.
        """
        most = min(self._max_rows, -(-len(jobs) // self._threads))
        groups: dict[tuple[str, SamplingParams], list[Job]] = {}
        for job in jobs:
            groups.setdefault((job.group_id, job.params), []).append(job)
        batches: list[list[list[Job]]] = []
        for group in sorted(groups.values(), key=lambda group: (_how(group[0].params), len(group[0].prompt_ids))):
            last = batches[-1] if batches else []
            full = sum(map(len, last)) + len(group) > most
            if not last or full or _how(last[0][0].params) != _how(group[0].params):
                batches.append([])
            batches[-1].append(group)
        return batches

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> tuple[str, ...]:
        """See ``Engine.load``."""
        own = self._model.state_dict()
        unknown, filled = [], set()
        for name, tensor in weights:
            if name not in own:
                unknown.append(name)
            elif own[name].shape != tensor.shape:
                raise DeliveryError(
                    f"version {version}: {name} has shape {list(own[name].shape)}, and {list(tensor.shape)} came"
                )
            else:
                own[name].copy_(tensor)
                filled.add(own[name].data_ptr())  # a tied tensor arrives once, under one of its names
        if unknown:
            raise DeliveryError(f"version {version}: the model has no {', '.join(unknown)}")
        self._version = version
        return tuple(sorted(name for name, tensor in own.items() if tensor.data_ptr() not in filled))

    @torch.inference_mode()
    def probe(self, prompts: Sequence[tuple[int, ...]], count: int) -> tuple[ProbeAnswer, ...]:
        """See ``Engine.probe``."""
        return tuple(_probe_answer(next_logprobs(self._model, prompt), count) for prompt in prompts)

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

    def interrupt(self) -> None:
        """See ``Engine.interrupt``: at the next token."""
        self._stop.set()

    def close(self) -> None:
        """Nothing beside the model, which goes with the engine."""

    @torch.inference_mode()
    def _sample_batch(self, groups: list[list[Job]], stop: threading.Event) -> dict[str, Completion]:
        """The completion of each job, by key; none once ``stop`` is set."""
        jobs = [job for group in groups for job in group]
        params = jobs[0].params
        uniform_RT = self._uniforms(jobs)
        token_ids: Tensor = torch.zeros((len(jobs), params.max_tokens), dtype=torch.long, device=self._model.device)
        logprobs = torch.zeros((len(jobs), params.max_tokens), dtype=torch.float32, device=self._model.device)
        lengths = np.full(len(jobs), params.max_tokens)
        recorder = SetRecorder(len(jobs), params) if params.record else None
        experts = ExpertRecorder(len(jobs)) if self._spec.experts else None
        state = self._prefill(groups, experts)
        for step in range(params.max_tokens):
            if stop.is_set():
                return {}
            if experts is not None:
                experts.add(state.row_R, state.experts_RLK)
            logprobs_RV = sampling_logprobs(state.logits_RV, params)
            if recorder is not None:
                recorder.add(state.row_R, logprobs_RV)
            chosen_R, logprob_R = choose(logprobs_RV, uniform_RT[state.row_R, step], params)
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
        drawn = self._collect(jobs, (token_ids, logprobs), lengths, recorder)
        return drawn if experts is None else experts.completed(drawn, jobs)

    def _uniforms(self, jobs: list[Job]) -> Tensor:
        params = jobs[0].params
        if params.temperature == 0.0:
            return torch.zeros((1, 1), device=self._model.device).expand(len(jobs), params.max_tokens)
        table = [
            uniforms(job.params.seed, job.params.stream, job.problem_id, job.sample, params.max_tokens) for job in jobs
        ]
        return torch.from_numpy(np.stack(table)).to(self._model.device)

    def _prefill(self, groups: list[list[Job]], experts: ExpertRecorder | None) -> _Decoding:
        """Left-padded prompts through the model once, then a row for each job of a group."""
        device = self._model.device
        prompts = [group[0].prompt_ids for group in groups]
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self._pad_id)
        present = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            present[row, width - len(prompt) :] = 1
        ids, present = ids.to(device), present.to(device)
        positions = (present.cumsum(dim=1) - 1).clamp(min=0)
        cache = growing_cache(self._model.config)
        routed = RoutedPass() if self._spec.experts else None
        output = self._model(
            input_ids=ids,
            attention_mask=present,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            # As an index: of a slice, which is not contiguous, torch's linear makes a copy of the head for each row.
            logits_to_keep=torch.tensor([width - 1], device=device),
            **options_of(routed),
        )
        prompt_of_R = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group) for group in groups]))
        prompt_of_R = prompt_of_R.to(device)
        cache.batch_select_indices(prompt_of_R)
        experts_RLK = None
        if routed is not None and experts is not None:
            experts_NLK = routed.used_NLK()
            experts_GPLK = experts_NLK.view(len(prompts), width, *experts_NLK.shape[1:])
            experts.begin(experts_GPLK, [len(prompt) for prompt in prompts], prompt_of_R)
            experts_RLK = experts_GPLK[prompt_of_R, -1]
        return _Decoding(
            row_R=torch.arange(len(prompt_of_R), device=device),
            cache=cache,
            present_RT=present[prompt_of_R],
            position_R=positions[prompt_of_R, -1] + 1,
            logits_RV=output.logits[:, -1].float()[prompt_of_R],
            experts_RLK=experts_RLK,
        )

    def _decode(self, state: _Decoding, chosen_R: Tensor) -> _Decoding:
        present_RT = torch.cat([state.present_RT, torch.ones_like(state.present_RT[:, :1])], dim=1)
        routed = RoutedPass() if self._spec.experts else None
        output = self._model(
            input_ids=chosen_R.unsqueeze(1),
            attention_mask=present_RT,
            position_ids=state.position_R.unsqueeze(1),
            past_key_values=state.cache,
            use_cache=True,
            **options_of(routed),
        )
        return _Decoding(
            row_R=state.row_R,
            cache=state.cache,
            present_RT=present_RT,
            position_R=state.position_R + 1,
            logits_RV=output.logits[:, -1].float(),
            experts_RLK=None if routed is None else routed.used_NLK(),
        )

    def _collect(
        self,
        jobs: Sequence[Job],
        drawn: tuple[Tensor, Tensor],
        lengths: Iterable[int],
        recorder: SetRecorder | None,
    ) -> dict[str, Completion]:
        """``drawn``: token ids and their log-probabilities."""
        ids_rows, logprob_rows = drawn[0].to(torch.int32).cpu().numpy(), drawn[1].cpu().numpy()
        stops = set(self._stop_ids.tolist())
        completions = {}
        rows = zip(jobs, lengths, ids_rows, logprob_rows, strict=True)
        for row, (job, length, ids_T, logprobs_T) in enumerate(rows):
            completions[job.key] = Completion(
                prompt_ids=job.prompt_ids,
                token_ids=ids_T[:length].copy(),  # without the rest of the table
                sampler_logprobs=logprobs_T[:length].copy(),
                text="",
                finish_reason="stop" if int(ids_T[length - 1]) in stops else "length",
                policy_versions=np.full(length, self._version, dtype=np.int32),
                sampled_from=None if recorder is None else recorder.sets(row, length),
            )
        return completions


def _how(params: SamplingParams) -> tuple[object, ...]:
    """What the groups of one batch must share."""
    cut = (params.temperature, params.top_p, params.top_k, params.min_p)
    return (*cut, params.max_tokens, params.samples_per_problem, params.record, params.record_top)


def build(spec: EngineSpec) -> PreTrainedModel:
    """The model of ``spec.model`` on this process's accelerator, else the CPU, with whatever weights."""
    config = AutoConfig.for_model(**dict(spec.model))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec.dtype), attn_implementation=ATTENTION)
    widen_biases(model)  # as the trainer has them
    if spec.float32_routers:
        widen_routers(model)
    model.requires_grad_(requires_grad=False)
    return cast(PreTrainedModel, model.to(device).eval())


def build_from(spec: EngineSpec, weights: Iterable[tuple[str, Tensor]]) -> PreTrainedModel:
    """The model of ``spec.model`` with ``weights`` themselves: they are not copied. Raises DeliveryError where a tensor
    is missing or too much."""
    with no_init_weights():
        model = build(spec)
    given = dict(weights)
    result = model.load_state_dict(given, strict=False, assign=True)
    model.tie_weights()
    own = model.state_dict()
    filled = {own[name].data_ptr() for name in given if name in own}
    missing = [name for name in result.missing_keys if own[name].data_ptr() not in filled]
    if missing or result.unexpected_keys:
        raise DeliveryError(f"the model's weights don't fit it: {few([*missing, *result.unexpected_keys])}")
    return model


@torch.inference_mode()
def next_logprobs(model: PreTrainedModel, prompt_ids: tuple[int, ...]) -> Tensor:
    """log π of the token after the prompt, [V], float32, at temperature 1."""
    ids = torch.tensor([prompt_ids], device=model.device)
    return torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, -1].float(), dim=-1)


def _probe_answer(logprobs_V: Tensor, count: int) -> ProbeAnswer:
    values, places = logprobs_V.topk(count)
    return ProbeAnswer(token_ids=tuple(places.tolist()), logprobs=tuple(values.tolist()))


@torch.inference_mode()
def module_outputs(model: PreTrainedModel, prompt_ids: tuple[int, ...]) -> dict[str, Tensor]:
    """See ``Engine.module_outputs``, for any transformers model."""
    trace = Trace(model)
    model(input_ids=torch.tensor([prompt_ids], device=model.device), use_cache=False)
    return trace.end()


def sampling_logprobs(logits_RV: Tensor, params: SamplingParams) -> Tensor:
    """log-probabilities that tokens are drawn with, [R, V] float32, −inf where they can't be; of temperature 0 those at
    temperature 1."""
    if params.temperature == 0.0:
        return torch.log_softmax(logits_RV, dim=-1)
    return torch.log_softmax(_filtered(logits_RV / params.temperature, params), dim=-1)


def choose(logprobs_RV: Tensor, uniform_R: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """(token [R], its log-probability [R]) of ``sampling_logprobs``.

    Inverse-CDF sampling in vocabulary order with one given uniform number per row; temperature 0 takes the most
    likely token.
    """
    if params.temperature == 0.0:
        chosen_R = logprobs_RV.argmax(dim=-1)
    else:
        cdf_RV = logprobs_RV.double().exp().cumsum(dim=-1)
        target_R = (uniform_R.to(cdf_RV) * cdf_RV[:, -1]).unsqueeze(1)
        chosen_R = torch.searchsorted(cdf_RV, target_R, right=True).squeeze(1).clamp(max=cdf_RV.shape[1] - 1)
    return chosen_R, logprobs_RV.gather(1, chosen_R.unsqueeze(1)).squeeze(1)


def _filtered(logits_RV: Tensor, params: SamplingParams) -> Tensor:
    """Logits at −inf below min-p (arXiv 2407.01082), outside top-k and outside the top-p nucleus (Holtzman et al.
    2020), cut in that order, as by vLLM."""
    if not params.truncated:
        return logits_RV
    if params.min_p > 0.0:
        floor_R1 = logits_RV.amax(dim=-1, keepdim=True) + math.log(params.min_p)
        logits_RV = logits_RV.masked_fill(logits_RV < floor_R1, -torch.inf)
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
