"""``hipattn generate``: a language model answers a prompt."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from hipattn import models
from hipattn.arguments import integer
from hipattn.cli.models import add_platform_and_dtype, apply
from hipattn.cli.output import Commands
from hipattn.errors import ArgumentError
from hipattn.models.generation import Generation
from hipattn.models.head import Sampling

__all__ = ["add_to", "run"]


def add_to(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "generate",
        help="answer a prompt with a language model",
        description="Answer a prompt with SmolLM2-135M-Instruct, which is fetched at first use, or another GGUF of the "
        "llama architecture. The answer goes to stdout as it is generated, its speed to stderr.",
    )
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--model", default="smollm2", help="smollm2, or a GGUF file (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of the answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest token")
    choice = parser.add_argument_group("with a temperature above 0")
    choice.add_argument("--top-k", type=int, default=0, help="choose among so many (default: 0, all)")
    choice.add_argument("--top-p", type=float, default=1.0, help="or the likeliest that make up this part (default: 1)")
    choice.add_argument("--seed", type=int, default=0, help="another one gives other answers (default: %(default)s)")
    add_platform_and_dtype(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate."""
    apply(arguments)
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    max_tokens = integer("max_tokens", arguments.max_tokens, 1)
    if arguments.model != "smollm2" and not Path(arguments.model).is_file():
        raise ArgumentError(f"--model is {arguments.model}; there is no such file, and smollm2 is the only name")
    with models.load(arguments.model, dtype=arguments.dtype) as model:
        answer = model.generate(arguments.prompt, max_tokens=max_tokens, **asdict(sampling))
        for piece in answer:
            print(piece, end="", flush=True)
        print()
        print(_speed(answer, model.stream.device.name), file=sys.stderr)
    return 0


def _speed(answer: Generation, device: str) -> str:
    rate = answer.tokens_per_second
    parts = [
        f"{len(answer.prompt)} tokens in, {len(answer.tokens)} out",
        f"{answer.first_token_seconds:.2f} s to the first",
        *([] if rate is None else [f"then {rate:.1f} tokens/s"]),
        device,
    ]
    ends = {"length": " (--max-tokens ended it)", "context": " (the model's context ended it)"}
    return ", ".join(parts) + ends.get(str(answer.ended), "")
