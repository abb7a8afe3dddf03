"""kdedge cache build | info | prune."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from kdedge.cli import output
from kdedge.cli.app import app
from kdedge.cli.options import CacheDir, Data, HostThreads, Json, use_threads

if TYPE_CHECKING:
    from kdedge.teacher_cache.root import CacheInfo

cache = typer.Typer(
    name="cache",
    help='The teachers\' logits that runs share (distillation.cache = "shared").',
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: kdedge cache info",
)
app.add_typer(cache)


@cache.command(
    epilog="Example: kdedge cache build digits --teacher runs/digits/teacher --set distillation.cached_views=4"
)
def build(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `kdedge recipes`) or a TOML file.")],
    teacher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--teacher", help="A trained one: checkpoint, NAME:WEIGHTS of torchvision, or Hub name."),
    ] = None,
    data: Data = None,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; may be repeated."),
    ] = None,
    cache_dir: CacheDir = None,
    threads: HostThreads = None,
    as_json: Json = False,
) -> None:
    """Compute a teacher's logits ahead of the runs that replay them.

    A run with distillation.cache = "shared" builds what it misses itself. Whatever stops this command, the next one
    goes on; several of them share the work.
    """
    from kdedge.recipe_file import load_recipe

    chosen = load_recipe(recipe, set_ or [])
    use_threads(threads)
    from kdedge.progress import Live
    from kdedge.teacher_cache.ahead import build_ahead

    try:
        with output.libraries_on_stderr():
            folder, built = build_ahead(chosen, data=data, teacher=teacher, cache_dir=cache_dir, progress=Live())
    except KeyboardInterrupt:
        output.line("Stopped. The same command goes on")
        raise
    if as_json:
        output.document(
            {
                "key": folder.name,
                "path": str(folder),
                "views": built.views,
                "found_shards": built.found_shards,
                "built_shards": built.built_shards,
                "time_s": built.time_s,
            }
        )
        return
    output.result(
        f"{folder.name}  {built.views} views complete, {built.built_shards} shards built ({built.time_s:.1f} s)"
    )
    output.line("Runs replay it with distillation.cache=shared, the same data, teacher, augmentation and seed")


@cache.command(epilog="Example: kdedge cache info --json")
def info(
    key: Annotated[Optional[str], typer.Argument(help="Of one cache; its first letters do.")] = None,  # noqa: UP045
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """List the caches: what they are made of, their size, whether they are complete, when they were last used."""
    from kdedge.teacher_cache.root import cache_root, find_cache, list_caches

    root = cache_root(cache_dir)
    found = list_caches(root) if key is None else [find_cache(root, key)]
    if as_json:
        output.document([one.to_dict() for one in found])
        return
    for one in found:
        output.result(_line(one))
        if key is not None and one.manifest is not None:
            for name, value in _words(one.manifest["made_of"]):
                output.result(f"  {name:<28} {value}")
    output.line(f"{len(found)} in {root}, {sum(one.size_bytes for one in found) / 1e6:.1f} MB")


@cache.command(epilog="Example: kdedge cache prune --older-than 30d --dry-run")
def prune(
    key: Annotated[Optional[str], typer.Argument(help="Of one cache; its first letters do.")] = None,  # noqa: UP045
    older_than: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--older-than", metavar="AGE", help="Those last used so long ago: 36h, 30d, 2w."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Remove caches; one that a running process uses stays."""
    from kdedge.errors import UserError
    from kdedge.teacher_cache import root as caches

    if sum((key is not None, older_than is not None, everything)) != 1:
        raise UserError("kdedge cache prune: no cache is named", cure="Give one of KEY, --older-than AGE, --all")
    root = caches.cache_root(cache_dir)
    if key is not None:
        chosen = [caches.find_cache(root, key)]
    elif older_than is not None:
        chosen = caches.older_than(caches.list_caches(root), caches.parse_age_s(older_than))
    else:
        chosen = caches.list_caches(root)
    removed, used = (chosen, []) if dry_run else caches.remove_caches(chosen)
    if not dry_run:
        caches.remove_leftovers(root)
    freed_bytes = sum(one.size_bytes for one in removed)
    if as_json:
        keys = {"removed": [one.key for one in removed], "in_use": [one.key for one in used]}
        output.document({**keys, "freed_bytes": freed_bytes, "dry_run": dry_run})
        return
    for one in removed:
        output.result(f"{'would remove' if dry_run else 'removed'} {_line(one)}")
    for one in used:
        output.result(f"in use, kept {_line(one)}")
    output.line(f"{len(removed)} {'to be removed' if dry_run else 'removed'}, {freed_bytes / 1e6:.1f} MB")


def _line(one: CacheInfo) -> str:
    """A cache in one line."""
    days = (time.time() - one.last_used) / 86400
    used = f"used {days:.0f} days ago" if days >= 1 else "used today"
    if one.manifest is None:
        return f"{one.key}  {one.size_bytes / 1e6:>9.1f} MB  {used}: {one.unreadable}"
    whole = sum(share == 1.0 for share in one.views)
    state = f"{whole} views" if one.complete else f"{whole} of {len(one.views)} views, incomplete"
    said, sizes = one.manifest, one.manifest["layout"]
    return (
        f"{one.key}  {one.size_bytes / 1e6:>9.1f} MB  {used}  {state}: {said['teacher']} on {said['data']}, "
        f"{sizes['samples']} samples, {said['made_of']['stored']['logits']} logits"
    )


def _words(parts: dict[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Nested plain values, flat."""
    lines: list[tuple[str, object]] = []
    for name, value in parts.items():
        lines += _words(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return lines
