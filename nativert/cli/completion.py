"""`completion`: what a shell loads to complete commands, options and names of instances."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from nativert.cli import context, output


@context.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    For bash: source <(nativert completion bash)
    """
    found = get_completion_class(shell)
    assert found is not None  # click knows the three of the choice
    root = ctx.find_root().command
    output.line(found(root, {}, "nativert", "_NATIVERT_COMPLETE").source())
