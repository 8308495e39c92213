"""`vdsr completion`: a script that has a shell complete commands, options, jobs and models."""

from __future__ import annotations

import click

from cli.options import Choice


@click.command(name="completion", epilog="Example: vdsr completion bash >> ~/.bashrc   (then open a new terminal)")
@click.argument("shell", type=Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print a script for SHELL: bash, zsh or fish.

    \b
    bash   vdsr completion bash >> ~/.bashrc
    zsh    vdsr completion zsh >> ~/.zshrc         behind the line with compinit
    fish   vdsr completion fish > ~/.config/fish/completions/vdsr.fish
    """  # noqa: D301  # click takes this very character for "leave the lines as they are"
    from click.shell_completion import get_completion_class

    from cli.main import root

    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    click.echo(kind(root, {}, "vdsr", "_VDSR_COMPLETE").source())
    return 0
