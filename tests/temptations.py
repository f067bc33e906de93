"""An environment that would lead a library elsewhere, with keys to spend there."""

from __future__ import annotations

BAIT = "127.66.66.66"
"""Where the environment would redirect to. On the loopback, so that a bait that is taken, which is
what the test is there to see, does not leave the machine either."""

TEMPTATIONS = {
    "OPENROUTER_API_KEY": "sk-or-nothing",
    "OPENAI_API_KEY": "sk-nothing",
    "OPENAI_BASE_URL": f"http://{BAIT}/v1",
    "OPENAI_API_BASE": f"http://{BAIT}/v1",
    "HTTP_PROXY": f"http://{BAIT}:3128",
    "HTTPS_PROXY": f"http://{BAIT}:3128",
    "ALL_PROXY": f"http://{BAIT}:3128",
    "http_proxy": f"http://{BAIT}:3128",
    "https_proxy": f"http://{BAIT}:3128",
    "all_proxy": f"http://{BAIT}:3128",
    "HF_ENDPOINT": f"http://{BAIT}",
    "POSTHOG_HOST": f"http://{BAIT}",
    "MEM0_TELEMETRY": "True",
    "OLLAMA_HOST": f"http://{BAIT}",
}
