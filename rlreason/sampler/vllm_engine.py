"""vLLM as a rollout engine, in the process that calls it: continuous batching, one engine step at a time.

Weights change between two steps, so a completion that is under way goes on with the new ones and every token knows its
version. Built with vLLM 0.32 (CPU and CUDA builds); the model's weights come by delivery alone, never from disk.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rlreason.errors import UsageError
from rlreason.sampler.decoding import check_room
from rlreason.sampler.draw import request_seed
from rlreason.sampler.jobs import Drawn, EngineSpec, Job, ProbeAnswer, Progress, VllmOptions
from rlreason.sampler.recording import MOST_OF_VLLM, asked_of_vllm, sets_of_vllm
from rlreason.types import Completion

if TYPE_CHECKING:
    from rlreason.arrays import FloatArray, IntArray

#: vLLM in this very process, without its usage report; without an accelerator also without torch.compile, which
#: would cost more seconds than it saves, and without pinning every engine to the first core.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
#: How much vLLM says, unless the user has said it.
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR"}
CPU_ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
CPU_KV_CACHE_BYTES = 256 << 20
CPU_BATCH_TOKENS = 8192
#: Share of a GPU that stays free where a trainer is on it too: for CUDA's contexts and what allocators can't join.
SLACK = 0.05
#: Types whose modules vLLM calls by the hub's names alone, not by transformers' (Mixtral's ``block_sparse_moe``).
HUB_NAMED = ("mixtral", "deepseek_v2", "deepseek_v3")


@dataclass(slots=True)
class _Live:
    """A completion under way. ``switches``: where newer weights took over, (tokens before, version)."""

    job: Job
    #: vLLM's own name for it.
    request_id: str
    version: int
    switches: list[tuple[int, int]] = field(default_factory=list)

    def versions(self, length: int) -> IntArray:
        """Version of the weights that each of ``length`` tokens was drawn with."""
        versions_T = np.full(length, self.version, dtype=np.int32)
        for before, version in self.switches:
            versions_T[before:] = version
        return versions_T


class VllmEngine:
    """``rlreason.sampler.jobs.Engine`` on vLLM. Keep it in a process of its own: vLLM sets threads and binds memory."""

    def __init__(self, spec: EngineSpec) -> None:
        os.environ.update(QUIET | os.environ | ENVIRONMENT)
        if not torch.cuda.is_available():
            os.environ.update(CPU_ENVIRONMENT)
        self._spec = spec
        self._llm = _build(spec)
        self._engine = self._llm.llm_engine
        self._shape = _on_meta(spec) if spec.model["model_type"] in HUB_NAMED else None
        self._live: dict[str, _Live] = {}
        self._done: list[Drawn] = []
        #: Jobs under way of each group, and whether one has none left since the last ``advance``.
        self._of_group: Counter[str] = Counter()
        self._group_done = False
        self._version = 0
        self._probes = 0
        #: On a CPU, experts are noted in vLLM's worker; with a GPU its outputs bring them.
        self._notes_experts = spec.experts and not torch.cuda.is_available()
        if self._notes_experts:
            self._llm.collective_rpc("note_experts")

    def submit(self, jobs: Sequence[Job]) -> None:
        """See ``Engine.submit``. The completions of a group share their prompt's blocks of the KV cache.

        Raises UsageError for a prompt that leaves no room for its answer.
        """
        check_room(self._spec, jobs)
        for job in jobs:
            request_id = self._engine.add_request(job.key, self._prompt(job.prompt_ids), self._params(job))
            self._live[job.key] = _Live(job, request_id, self._version)
            self._of_group[job.group_id] += 1

    def advance(self, seconds: float, steps: int | None = None) -> Progress:
        """See ``Engine.advance``. Returns early, after a third of the time, where a group is done."""
        began, taken = time.monotonic(), 0
        while self._live if steps is None else taken < steps:
            self._step()
            taken += 1
            passed = time.monotonic() - began
            if steps is None and (passed >= seconds or (self._group_done and passed >= seconds / 3)):
                break
        drawn, self._done, self._group_done = tuple(self._done), [], False
        return Progress(drawn=drawn, steps=taken)

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> tuple[str, ...]:
        """See ``Engine.load``. Cached keys and values of the old weights are dropped, and keyed by version besides."""
        for request in self._engine.engine_core.engine_core.scheduler.requests.values():
            key = request.request_id.rpartition("-")[0]  # vLLM adds 8 characters of its own
            self._live[key].switches.append((request.num_output_tokens, version))
        if self._shape is not None:
            weights = _named_as_on_the_hub(self._shape, weights)
        missing: set[str] = set()
        # Engines of several GPUs are other processes, which can't be handed what is still arriving.
        given = weights if self._spec.vllm.tensor_parallel == 1 else list(weights)
        for names in self._llm.collective_rpc("receive_weights", args=(given,)):
            missing.update(names)
        self._forget_caches()
        self._version = version
        return tuple(sorted(missing))

    def probe(self, prompts: Sequence[tuple[int, ...]], count: int) -> tuple[ProbeAnswer, ...]:
        """See ``Engine.probe``. Completions under way advance meanwhile."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=count, detokenize=False, ignore_eos=True)
        ids = [
            self._engine.add_request(f"probe-{self._probes}-{place}", self._prompt(prompt), params)
            for place, prompt in enumerate(prompts)
        ]
        self._probes += 1
        found: dict[str, ProbeAnswer] = {}
        while len(found) < len(ids):
            for output in self._step():
                entries = sorted(output.outputs[0].logprobs[0].items(), key=lambda item: item[1].rank)
                found[output.request_id] = ProbeAnswer(
                    token_ids=tuple(token for token, _ in entries[:count]),
                    logprobs=tuple(entry.logprob for _, entry in entries[:count]),
                )
        return tuple(found[f"probe-{self._probes - 1}-{place}"] for place in range(len(ids)))

    def prompt_logprobs(self, rows: Sequence[IntArray], count: int) -> list[tuple[IntArray, FloatArray]]:
        """(ids, log-probabilities), [T, 1 + count] each, of rows of T tokens: of the token itself, then of the
        ``count`` most probable ones in its place; 0 for the first token, which nothing is before.

        At temperature 1, over the words that ``cut_vocabulary`` leaves; ``count`` is below the engine's
        ``max_logprobs``. Call it with no job under way.
        """
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=count, flat_logprobs=True, detokenize=False)
        names = [f"row-{self._probes}-{place}" for place in range(len(rows))]
        self._probes += 1
        for name, row in zip(names, rows, strict=True):
            self._engine.add_request(name, self._prompt(row), params)
        found: dict[str, tuple[IntArray, FloatArray]] = {}
        while len(found) < len(names):
            for output in self._step():
                flat = output.prompt_logprobs
                ids_N, logprobs_N = np.asarray(flat.token_ids, np.int32), np.asarray(flat.logprobs, np.float32)
                pair = (ids_N.reshape(-1, 1 + count), logprobs_N.reshape(-1, 1 + count))
                found[output.request_id] = (np.pad(pair[0], ((1, 0), (0, 0))), np.pad(pair[1], ((1, 0), (0, 0))))
        return [found[name] for name in names]

    def cut_vocabulary(self, words: int) -> None:
        """From now on the softmax is over ids below ``words`` alone."""
        self._llm.collective_rpc("cut_vocabulary", args=(words,))

    def module_outputs(self, prompt_ids: tuple[int, ...]) -> Mapping[str, Tensor]:
        """See ``Engine.module_outputs``. Call it with no job under way."""
        self._forget_caches()
        self._llm.collective_rpc("trace_begin")
        self.probe([prompt_ids], 1)
        outputs: dict[str, Tensor] = self._llm.collective_rpc("trace_end")[0]
        return outputs

    def sleep(self) -> None:
        """See ``Engine.sleep``."""
        self._llm.sleep(level=2)

    def wake(self) -> None:
        """See ``Engine.wake``."""
        self._llm.wake_up()

    def abort(self) -> None:
        """See ``Engine.abort``."""
        self._engine.abort_request([live.request_id for live in self._live.values()], internal=True)
        self._live.clear()
        self._done.clear()
        self._of_group.clear()

    def interrupt(self) -> None:
        """Nothing to do: ``advance`` ends by itself after its seconds."""

    def close(self) -> None:
        """See ``Engine.close``."""
        self.abort()
        self._engine.engine_core.shutdown()
        del self._engine, self._llm

    def _step(self) -> list[Any]:
        """One engine step. Finished completions go to ``_done``; the outputs of probes are returned."""
        others, ended = [], []
        for output in self._engine.step():
            live = self._live.pop(output.request_id, None)
            if live is None:
                others.append(output)
            else:
                completion = _completion(output.outputs[0], live)
                ended.append((live, completion, output.outputs[0].routed_experts))
                self._of_group[live.job.group_id] -= 1
                if not self._of_group[live.job.group_id]:
                    del self._of_group[live.job.group_id]
                    self._group_done = True
        self._done += self._with_experts(ended)
        return others

    def _with_experts(self, ended: Sequence[tuple[_Live, Completion, Any]]) -> list[Drawn]:
        """The completions that ended in one step, each with its experts where they are asked for."""
        if not self._spec.experts:
            return [Drawn(key=live.job.key, completion=completion) for live, completion, _ in ended]
        tables = [experts for _, _, experts in ended]
        if self._notes_experts and ended:
            tables = self._llm.collective_rpc("take_experts", args=([live.request_id for live, _, _ in ended],))[0]
        rows = zip(ended, tables, strict=True)
        return [
            Drawn(key=live.job.key, completion=with_experts(completion, table)) for (live, completion, _), table in rows
        ]

    def _forget_caches(self) -> None:
        self._engine.reset_prefix_cache(reset_running_requests=True)

    def _prompt(self, prompt_ids: Sequence[int] | IntArray) -> dict[str, object]:
        return {"prompt_token_ids": [int(token) for token in prompt_ids], "cache_salt": str(self._version)}

    def _seed(self, job: Job) -> int | None:
        """What fixes the request's draws; None: the engine's own generator goes on."""
        if not self._spec.vllm.request_seeds:
            return None
        return request_seed(job.params.seed, job.params.stream, job.problem_id) + job.sample

    def _params(self, job: Job) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = job.params
        return SamplingParams(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            max_tokens=params.max_tokens,
            seed=self._seed(job),
            stop_token_ids=list(self._spec.stop_ids),
            ignore_eos=True,  # the stop tokens are given
            logprobs=asked_of_vllm(params),  # besides the token's own
            flat_logprobs=True,  # one list, where vLLM would otherwise make two objects a token
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # it is this request's alone
        )


def _completion(output: Any, live: _Live) -> Completion:
    logprobs, sets = output.logprobs.logprobs, None
    if live.job.params.record:
        logprobs, sets = sets_of_vllm(output.logprobs, live.job.params)
    return Completion(
        prompt_ids=live.job.prompt_ids,
        token_ids=output.token_ids,
        sampler_logprobs=logprobs,
        sampled_from=sets,
        text="",
        finish_reason="stop" if output.finish_reason == "stop" else "length",
        policy_versions=live.versions(len(output.token_ids)),
    )


def with_experts(completion: Completion, experts_NLK: npt.NDArray[Any]) -> Completion:
    """``completion`` with the experts of its prompt's and its own positions, [prompt + tokens − 1 or more, L, K]."""
    before, count = len(completion.prompt_ids) - 1, len(completion.token_ids)
    own_TLK = experts_NLK[before : before + count]
    return replace(completion, prompt_experts=experts_NLK[:before], routed_experts=own_TLK)


def _named_as_on_the_hub(shape: Any, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Tensor by tensor, as they arrive: stacked experts become one of each."""
    for name, tensor in weights:
        yield from revert_weight_conversion(shape, {name: tensor}).items()


def _on_meta(spec: EngineSpec) -> PreTrainedModel:
    """The model as transformers has it, without numbers: it knows the hub's names."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**dict(spec.model)))
    return model


def _build(spec: EngineSpec) -> Any:
    """A ``vllm.LLM`` with random weights. Raises what vLLM raises for a model that it can't run."""
    from vllm import LLM

    on_cpu = not torch.cuda.is_available()
    options = spec.vllm
    settings: dict[str, Any] = {"kv_cache_memory_bytes": options.kv_cache_bytes or CPU_KV_CACHE_BYTES} if on_cpu else {}
    settings |= {"disable_log_stats": True, "max_logprobs": MOST_OF_VLLM}
    if on_cpu:
        if options.request_seeds and options.settings.get("enable_chunked_prefill") is True:
            raise UsageError("[sampler.vllm] enable_chunked_prefill = true: on a CPU draws would not be repeatable")
        # A sequence that is computed anew after an update must fit one step: a CPU's random generator can't take back
        # the draw that vLLM discards at the end of a part.
        settings |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(CPU_BATCH_TOKENS, spec.longest)}
    else:
        settings |= {"gpu_memory_utilization": share_of_gpu(options, *torch.cuda.mem_get_info())}
        settings |= {"kv_cache_memory_bytes": options.kv_cache_bytes} if options.kv_cache_bytes else {}
        settings |= {"tensor_parallel_size": options.tensor_parallel, "enable_sleep_mode": options.sleep_mode}
        settings |= {"enable_return_routed_experts": True} if spec.experts else {}
        if options.tensor_parallel > 1:  # in an actor vLLM would ask Ray for places of its own
            settings |= {"distributed_executor_backend": "mp"}
    with tempfile.TemporaryDirectory() as folder:
        # vLLM takes a folder; without weights in it, as they are delivered.
        Path(folder, "config.json").write_text(json.dumps(dict(spec.model)), encoding="utf-8")
        try:
            return LLM(
                folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                dtype=spec.dtype,
                enforce_eager=options.enforce_eager or on_cpu,
                max_model_len=spec.max_length,
                max_num_seqs=spec.max_rows,
                logprobs_mode="processed_logprobs",  # of the distribution that was drawn from
                async_scheduling=False,  # a step is whole when weights change
                worker_extension_cls=options.extension,
                # Every request brings its own; without, workers must not draw the same numbers.
                seed=0 if options.request_seeds else secrets.randbits(31),
                **(settings | dict(options.settings)),
            )
        except (ValueError, TypeError, NotImplementedError) as error:
            if "KV cache" in str(error):
                raise UsageError(cache_too_small(spec, str(error))) from error
            if options.settings:
                said = " ".join(str(error).split())[:300]
                raise UsageError(f"[sampler.vllm] {', '.join(options.settings)}: vLLM refuses: {said}") from error
            raise


def share_of_gpu(options: VllmOptions, free: int, total: int) -> float:
    """The part of a GPU that vLLM may take: of one that it shares in turns with a trainer no more than that leaves,
    also later, when it has its moments. Of ``total`` bytes ``free`` are free. Raises UsageError where that is nothing.
    """
    if not options.sleep_mode:
        return options.gpu_memory_utilization
    left = (free - options.beside - SLACK * total) / total
    if left <= 0:
        raise UsageError(
            f"the trainer leaves the engine nothing of the GPU that they share: {free / 1e9:.1f} of "
            f"{total / 1e9:.1f} GB are free, and it will take {options.beside / 1e9:.1f} GB more (the optimizer's "
            "moments): train an adapter (trainer.lora), set trainer.offload with trainer.ranks, or use another GPU"
        )
    return min(options.gpu_memory_utilization, left)


def cache_too_small(spec: EngineSpec, reason: str) -> str:
    """vLLM's complaint that one sequence doesn't fit its memory, in the recipe's keys."""
    needed = re.search(r"\(?([0-9.]+) GiB KV cache is needed", reason)
    more = (
        f"sampler.kv_cache_gib = {math.ceil(float(needed[1]) * 100 + 1) / 100:g} or more"
        if needed
        else ("more sampler.kv_cache_gib")
    )
    where = "" if not torch.cuda.is_available() else ", or a larger sampler.gpu_memory_utilization"
    return (
        f"vLLM's memory for keys and values can't hold one sequence of {spec.longest} tokens: set sampler.max_length "
        f"to what the recipe needs, or {more}{where}"
    )
