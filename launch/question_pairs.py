"""Make pairs for question answering from what every Python brings: signatures and docstrings.

    python launch/question_pairs.py FOLDER

Writes FOLDER/{train,valid,test}.jsonl, one {"question": ..., "answer": ...} a line. The question is
the name of a function or class of the standard library with its arguments, the answer the first
sentence of its docstring. Which pairs are held out depends on a hash of the names alone, one in
sixteen each for valid and test; pairs with an equal question appear once.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from quickstart_corpus import documents

HELD_OUT_ONE_IN = 16
LONGEST_ANSWER = 200
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n\s*\n")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def main(folder: Path) -> None:
    """Write the three files and say how many pairs they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, dict[str, str]] = {"train": {}, "valid": {}, "test": {}}
    for name, text in documents():
        if name.endswith(".py"):
            for question, answer in pairs_of(name, text):
                parts[part_of(question)].setdefault(question, answer)
    for part, pairs in parts.items():
        with open(folder / f"{part}.jsonl", "w", encoding="utf-8") as file:
            for question, answer in pairs.items():
                file.write(json.dumps({"question": question, "answer": answer}) + "\n")
    print(", ".join(f"{len(pairs)} pairs for {part}" for part, pairs in parts.items()))


def pairs_of(name: str, text: str) -> Iterator[tuple[str, str]]:
    """All (question, answer) of one module, in the order of the definitions."""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Definition):
            answer = first_sentence(ast.get_docstring(node) or "")
            if answer:
                yield f"{module}: {signature(node)}", answer


def signature(node: Definition) -> str:
    """`def name(arguments)` or `class Name(bases)`, without defaults and annotations."""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}({', '.join(ast.unparse(base) for base in node.bases)})"
    arguments = node.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    names += [argument.arg for argument in arguments.kwonlyargs]
    if arguments.kwarg:
        names.append(f"**{arguments.kwarg.arg}")
    return f"def {node.name}({', '.join(names)})"


def first_sentence(docstring: str) -> str:
    """The first sentence on one line; "" for none, or for one too long to be one."""
    sentence = " ".join(_SENTENCE_END.split(docstring.strip(), maxsplit=1)[0].split())
    return sentence if len(sentence) <= LONGEST_ANSWER else ""


def part_of(question: str) -> str:
    """Decide by the question, so that the answer is the same on every machine and in every run."""
    digest = hashlib.sha256(question.encode("utf-8")).digest()
    number = int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN
    return {0: "valid", 1: "test"}.get(number, "train")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: question_pairs.py FOLDER")
    main(Path(sys.argv[1]))
