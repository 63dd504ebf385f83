# SPDX-License-Identifier: Apache-2.0
"""Reads routes out of the engines' sources, which are parsed and never imported."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_METHODS = {"get": "GET", "post": "POST", "put": "PUT", "delete": "DELETE"}
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Found:
    """A route of a source: names of parameters of the query and of fields of the body, as far as they are
    named, and the keys of all that the handler writes in braces."""

    methods: frozenset[str]
    query: frozenset[str]
    body: frozenset[str]
    keys: frozenset[str]


@cache
def _parse(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def fields(path: Path) -> dict[str, frozenset[str]]:
    """Of each class: those that it declares itself."""
    return {
        node.name: frozenset(
            item.target.id
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        )
        for node in _parse(path)
        if isinstance(node, ast.ClassDef)
    }


def routes(path: Path, classes: dict[str, frozenset[str]]) -> dict[str, Found]:
    """By path. `classes`: of which bodies are made."""
    found = {}
    for function in _parse(path):
        if isinstance(function, _Function):
            for decorator in function.decorator_list:
                route = _route(decorator)
                if route is not None:
                    found[route[0]] = Found(
                        route[1], _query(function), _body(function, classes), _keys(function)
                    )
    return found


def _route(decorator: ast.expr) -> tuple[str, frozenset[str]] | None:
    if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Attribute):
        return None
    first = decorator.args[0] if decorator.args else None
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return None
    if decorator.func.attr in _METHODS:
        return first.value, frozenset({_METHODS[decorator.func.attr]})
    if decorator.func.attr == "api_route":
        methods = next(word.value for word in decorator.keywords if word.arg == "methods")
        return first.value, frozenset(ast.literal_eval(methods))
    return None


def _names(node: ast.AST) -> set[str]:
    return {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}


def _query(function: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    declared = {
        argument.arg
        for argument in function.args.args
        if argument.annotation is not None and "Query" in _names(argument.annotation)
    }
    return frozenset(declared | _asked(function, "query_params"))


def _body(
    function: ast.FunctionDef | ast.AsyncFunctionDef, classes: dict[str, frozenset[str]]
) -> frozenset[str]:
    found = _asked(function, "body")
    for argument in function.args.args:
        if argument.annotation is not None:
            for name in _names(argument.annotation):
                found |= classes.get(name, frozenset())
    return frozenset(found)


def _asked(function: ast.AST, of: str) -> set[str]:
    """What is taken out of `of` by .get("...") or .getlist("...")."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", None)
            if name == of and node.func.attr in ("get", "getlist"):
                found.add(ast.literal_eval(node.args[0]))
    return found


def _keys(function: ast.AST) -> frozenset[str]:
    return frozenset(
        key.value
        for node in ast.walk(function)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    )
