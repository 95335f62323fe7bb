"""Problems in: files, hub data sets and procedural tasks; prompts and tags. Imports no torch, ray or vllm."""
