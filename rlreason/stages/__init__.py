"""The stages of a run (sft, grpo, reject, distill, evaluate) and the pipeline that runs them in order."""
