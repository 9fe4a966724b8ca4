"""Every metric of both kinds of process, declared in one place; `operations` serves them at `/metrics`.

The API server and the worker loop set their own; `engine` sets the gauges of its queues and of its KV cache.
"""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

# The API server, by the api's name.

requests_total = Counter("flashgen_requests_total", "Requests answered, by HTTP status.", ["api", "code"])
request_seconds = Histogram(
    "flashgen_request_seconds", "From the request to the end of its answer.", ["api"], buckets=_SECONDS
)
time_to_first_token_seconds = Histogram(
    "flashgen_time_to_first_token_seconds", "From the request to its first text.", ["api"], buckets=_SECONDS
)
requests_in_flight = Gauge("flashgen_requests_in_flight", "Requests admitted and not yet answered.", ["api"])
disconnects_total = Counter("flashgen_disconnects_total", "Callers that left before their answer ended.", ["api"])

# The worker, by the model's id.

requests_running = Gauge("flashgen_requests_running", "Requests that are part of the current batch.", ["model"])
requests_waiting = Gauge("flashgen_requests_waiting", "Requests that wait for room in the batch.", ["model"])
kv_blocks_used = Gauge("flashgen_kv_blocks_used", "Blocks of the KV cache that requests hold.", ["model"])
kv_blocks_total = Gauge("flashgen_kv_blocks_total", "Blocks of the KV cache.", ["model"])
prefix_cache_queries_total = Counter(
    "flashgen_prefix_cache_queries_total", "Prompt tokens that were looked up in the prefix cache.", ["model"]
)
prefix_cache_hits_total = Counter(
    "flashgen_prefix_cache_hits_total", "Prompt tokens that were found in the prefix cache.", ["model"]
)
prompt_tokens_total = Counter("flashgen_prompt_tokens_total", "Prompt tokens of requests that finished.", ["model"])
generation_tokens_total = Counter("flashgen_generation_tokens_total", "Tokens generated.", ["model"])
steps_total = Counter("flashgen_steps_total", "Engine steps.", ["model"])
step_seconds = Histogram("flashgen_step_seconds", "Duration of an engine step.", ["model"], buckets=_SECONDS)

# Which models a worker has in memory.

model_loads_total = Counter("flashgen_model_loads_total", "Models loaded, by how it ended.", ["model", "result"])
model_load_seconds = Histogram(
    "flashgen_model_load_seconds", "From the decision to load a model until it is loaded.", ["model"], buckets=_SECONDS
)
model_unloads_total = Counter(
    "flashgen_model_unloads_total", "Models unloaded: for another, after idle time, or on request.", ["model", "reason"]
)
model_wait_seconds = Histogram(
    "flashgen_model_wait_seconds", "How long requests waited for a model to be loaded.", ["model"], buckets=_SECONDS
)
requests_waiting_for_model = Gauge(
    "flashgen_requests_waiting_for_model", "Requests that wait for their model to be loaded.", ["model"]
)
model_memory_bytes = Gauge("flashgen_model_memory_bytes", "What a model takes; 0 while it is not loaded.", ["model"])
memory_reserved_bytes = Gauge(
    "flashgen_memory_reserved_bytes", "Of all models that are loaded, being loaded or being unloaded."
)
memory_budget_bytes = Gauge("flashgen_memory_budget_bytes", "What all models together may take.")
host_cache_bytes = Gauge("flashgen_host_cache_bytes", "Weight files of unloaded models that stay in host memory.")
host_cache_hits_total = Counter(
    "flashgen_host_cache_hits_total", "Loads whose files had stayed in host memory, or were read ahead.", ["model"]
)
host_cache_misses_total = Counter("flashgen_host_cache_misses_total", "Loads whose files had to be read.", ["model"])

# How a worker starts.

cold_start_seconds = Gauge(
    "flashgen_cold_start_seconds",
    "From the start of the process to its first token, by what it was spent on.",
    ["stage"],
)
worker_restarts = Gauge("flashgen_worker_restarts", "How often the worker crashed and was forked anew.")
