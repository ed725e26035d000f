"""The parts of benchmarks.vllm_stream: what is asked, who is asked, and how both compare."""
