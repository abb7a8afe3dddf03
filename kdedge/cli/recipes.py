"""kdedge recipes."""

from __future__ import annotations

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.options import Json


@app.command(epilog="Example: kdedge recipes --json")
def recipes(as_json: Json = False) -> None:
    """List the shipped recipes, one line each."""
    from kdedge.recipe_file import load_recipe, shipped_recipes

    found = {name: load_recipe(name) for name in shipped_recipes()}
    if as_json:
        output.document([{"name": n, "description": r.description, "recipe": r.to_dict()} for n, r in found.items()])
        return
    width = max(map(len, found))
    for name, recipe in found.items():
        output.result(f"{name:<{width}}  {recipe.description}")
