"""``rlreason.types.Sampler`` over a pool of rollout workers: prompts in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlreason.data.prompts import PromptFormat, RenderedPrompt
from rlreason.sampler.jobs import Drawn, Job, Sample
from rlreason.sampler.pool import RolloutPool
from rlreason.types import Completion, Group, Problem, SamplingParams


class PoolSampler:
    """Renders problems, has the pool draw them and reads the tokens back."""

    def __init__(self, pool: RolloutPool, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> None:
        self.pool = pool
        self._tokenizer = tokenizer
        self._format = prompt_format
        #: Group key -> its problem and prompt, until it is handed out.
        self._asked: dict[str, tuple[Problem, RenderedPrompt]] = {}

    @property
    def version(self) -> int:
        """The newest version that was published."""
        return self.pool.newest or 0

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """See ``rlreason.types.Sampler``; ``weights`` are those that the canary's model holds."""
        self.pool.publish(weights, version)

    def sample(self, problems: Sequence[Problem], params: SamplingParams) -> list[Group]:
        """See ``rlreason.types.Sampler``."""
        jobs = self.jobs(problems, params)
        groups = {group.group_id: group for group in self.stream(jobs)}
        return [groups[job.key] for job in jobs]

    def stream(self, jobs: Sequence[Job]) -> Iterator[Group]:
        """The groups of ``jobs`` as they are done."""
        for drawn in self.pool.draw(jobs):
            yield self.group(drawn)

    def jobs(self, problems: Sequence[Problem], params: SamplingParams, min_version: int = 0) -> list[Job]:
        """What the pool is asked for. A problem that comes again in one stream is a group of its own."""
        made = []
        for problem in problems:
            name, repeats = problem.id, 1
            while f"{params.stream}/{name}" in self._asked:
                repeats += 1
                name = f"{problem.id}#{repeats}"
            key = f"{params.stream}/{name}"
            prompt = self._format.render(problem, self._tokenizer)
            self._asked[key] = (problem, prompt)
            made.append(
                Job(
                    key=key,
                    problem_id=name,
                    prompt_ids=prompt.ids,
                    params=params,
                    min_version=min_version,
                )
            )
        return made

    def group(self, drawn: Drawn) -> Group:
        """A finished group with its texts."""
        problem, prompt = self._asked.pop(drawn.key)
        completions = tuple(self._completion(prompt, sample) for sample in drawn.samples_G)
        return Group(group_id=drawn.key, problem=problem, completions_G=completions)

    def _completion(self, prompt: RenderedPrompt, sample: Sample) -> Completion:
        ids = sample.token_ids
        return Completion(
            prompt_ids=prompt.ids,
            token_ids=ids,
            logprobs_T=sample.logprobs_T,
            text=self._tokenizer.decode(ids[:-1] if sample.stopped else ids, skip_special_tokens=False),
            finish_reason="stop" if sample.stopped else "length",
            prefill=prompt.prefill,
            policy_version_min=min(sample.versions_T),
            policy_version_max=max(sample.versions_T),
            policy_version_T=sample.versions_T,
        )
