"""The floors of the house, and what the code says about them.

Rooms are the files and folders of ``src/bella``. A room may use those on the floors below it and,
on its own floor, those to its left. Imports inside functions count; those for type checkers alone
do not. ``tests/test_floors.py`` holds the code to this, ``python docs/draw.py`` draws it.
"""

from __future__ import annotations

import ast
from pathlib import Path

import grimp
import networkx as nx

import bella

PACKAGE = "bella"
SOURCE = Path(bella.__file__).parents[1]

FLOORS = (
    ("the ground", "errors trees patterns files sealed console host kernels folders parallel"),
    ("one pass", "particles inputs"),
    (
        "the contract, and what is scored",
        "storage metrics generation posterior memory precision classes likelihood",
    ),
    ("how particles move, what they say, how they differ", "transport prediction posteriors"),
    ("who uses them", "data models evaluation training interop recipes"),
    ("whole runs", "report runs experiments serve"),
    ("the command", "cli"),
)
"""Bottom first; on a floor from left to right. A new room gets its word here."""

UP: dict[tuple[str, str], str] = {}
"""Arrows that run back up, each with its reason. The list is meant to get shorter."""


def imports() -> nx.DiGraph:
    """Every module of the package, and an arrow from each to every module that it imports.

    An import of ``bella.a.b`` runs ``bella.a`` first, so it counts as one of both, unless the
    importer is inside ``bella.a`` itself. ``bella`` alone holds nothing but names: who writes
    ``bella.load`` uses the module where `load` lives, and who reads ``bella.POSTERIORS`` uses all
    of those.
    """
    found = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    modules = found.modules - {PACKAGE, f"{PACKAGE}.__main__"}
    graph = nx.DiGraph()
    graph.add_nodes_from(sorted(modules))
    for module in sorted(modules):
        wanted = set(found.find_modules_directly_imported_by(module))
        if PACKAGE in wanted:
            wanted = (wanted - {PACKAGE}) | named(module)
        for used in sorted(wanted):
            parent = used.rpartition(".")[0]
            inside = f"{module}.".startswith(f"{parent}.")
            for target in (used, parent):
                if target in modules and target != module and (target == used or not inside):
                    graph.add_edge(module, target)
    return graph


def named(module: str) -> set[str]:
    """The modules behind the public names that a module reads from ``bella``."""
    path = SOURCE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    used: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == PACKAGE:
                used.update(bella.POSTERIORS if node.attr == "POSTERIORS" else [node.attr])
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            used.update(alias.name for alias in node.names)
    return {bella._PLACES.get(name, f"{PACKAGE}.{name}") for name in used & set(bella.__all__)}


def room(module: str) -> str:
    """The file or folder of ``src/bella`` that a module stands in."""
    return module.split(".")[1]


def arrows(graph: nx.DiGraph) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """From room to room, with the imports that make each arrow."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for user, used in sorted(graph.edges):
        if room(user) != room(used):
            found.setdefault((room(user), room(used)), []).append((user, used))
    return found


def places() -> dict[str, tuple[int, int]]:
    """Floor of every room, and its place on it from the left."""
    rows = [row.split() for _, row in FLOORS]
    return {name: (floor, at) for floor, row in enumerate(rows) for at, name in enumerate(row)}


def backwards(graph: nx.DiGraph) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Arrows that run up, or to the right."""
    at = places()
    return {pair: found for pair, found in arrows(graph).items() if at[pair[0]] < at[pair[1]]}


def circles(graph: nx.DiGraph) -> list[list[str]]:
    """Modules that import each other, however long the way round, without the arrows in `UP`."""
    kept = [edge for edge in graph.edges if (room(edge[0]), room(edge[1])) not in UP]
    groups = nx.strongly_connected_components(nx.DiGraph(kept))
    return [sorted(group) for group in groups if len(group) > 1]


def complaints(graph: nx.DiGraph) -> list[str]:
    """What does not hold, a sentence each."""
    rooms, at = {room(module) for module in graph}, places()
    found = [f"{name} stands on no floor: add it to FLOORS." for name in sorted(rooms - set(at))]
    found += [f"{name} is on a floor and not in the code." for name in sorted(set(at) - rooms)]
    if found:
        return found
    back = backwards(graph)
    for (user, used), made_by in back.items():
        if (user, used) not in UP:
            first, second = made_by[0]
            found.append(
                f"{user} uses {used}, which does not stand below it: {first} imports {second}."
            )
    found += [f"{a} to {b} is listed in UP and not in the code." for a, b in set(UP) - set(back)]
    found += [f"{', '.join(circle)} import each other." for circle in circles(graph)]
    return found
