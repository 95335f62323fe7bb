"""Problems in: files, hub data sets, named sets and their mixes; prompts and tags. Imports no torch, ray or vllm."""
