"""kdedge recipes [show]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.options import Json

recipes = typer.Typer(name="recipes", rich_markup_mode=None)
app.add_typer(recipes)


@recipes.callback(invoke_without_command=True, epilog="Example: kdedge recipes --json")
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the shipped recipes, one line each; `show` prints one."""
    if context.invoked_subcommand is not None:
        return
    from kdedge.recipe_file import load_recipe, shipped_recipes

    found = {name: load_recipe(name) for name in shipped_recipes()}
    if as_json:
        output.document([{"name": n, "description": r.description, "recipe": r.to_dict()} for n, r in found.items()])
        return
    width = max(map(len, found))
    for name, recipe in found.items():
        output.result(f"{name:<{width}}  {recipe.description}")


@recipes.command(epilog="Example: kdedge recipes show digits --out mine.toml")
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A shipped recipe (see `kdedge recipes`) or a TOML file.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="FILE", help="Write it to FILE, a recipe of your own to change."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    as_json: Json = False,
) -> None:
    """Print a recipe as TOML, every key with its meaning.

    Keys that the recipe leaves at their defaults are there too.
    """
    from kdedge.recipe_file import load_recipe
    from kdedge.recipe_text import recipe_toml

    recipe = load_recipe(name)
    text = recipe_toml(recipe)
    if out is not None:
        _write(out, text, force)
    if as_json or (context.parent is not None and context.parent.params["as_json"]):
        output.document(recipe.to_dict())
    elif out is None:
        output.result(text.rstrip("\n"))
    else:
        output.result(f"{out}: all of recipe '{recipe.name}'")
        output.line(f"Change it, its name too; then: kdedge distill {out}")


def _write(path: Path, text: str, force: bool) -> None:
    from kdedge.errors import UserError
    from kdedge.files import write_atomic

    if path.suffix != ".toml":
        raise UserError("a recipe's file ends in .toml", where=path, cure="Give --out that ending")
    if path.exists() and not force:
        raise UserError("the file is there already", where=path, cure="Choose another --out, or overwrite with --force")
    write_atomic(path, text)
