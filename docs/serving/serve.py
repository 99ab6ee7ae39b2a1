"""Serve a folder of `run.py export RUN_DIR FOLDER`: scores and samples over HTTP, without lm_jax.

Needs jax, flatbuffers and safetensors (and tokenizers for a vocabulary of byte pairs):

    python serve.py FOLDER [PORT]
    curl localhost:8000/score -d '{"text": "the cat"}'
    curl localhost:8000/sample -d '{"prompt": "the ", "length": 50, "temperature": 0.8, "seed": 1}'
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jax
import numpy as np
import safetensors.flax

LENGTH = 64  # tokens of a call of `score`; another length would compile another program


class Model:
    """The three functions of a folder, with the parameters and the vocabulary."""

    def __init__(self, folder: Path):
        about = json.loads((folder / "about.json").read_text())
        for name, function in about["functions"].items():
            exported = jax.export.deserialize((folder / function["file"]).read_bytes())
            setattr(self, name, jax.jit(exported.call))
        self.params = safetensors.flax.load_file(folder / "weights.safetensors")
        self.vocabulary, self.kind = about["vocabulary"], about["vocabulary"]["tokenizer"]
        self.numbers = {token: n for n, token in enumerate(self.vocabulary["tokens"])}

    def encode(self, text: str, ended: bool) -> list[int]:
        """The tokens of a text; words end their last line if `ended`."""
        if self.kind == "byte":
            return list(text.encode())
        if self.kind == "bpe":
            from tokenizers import Tokenizer

            return Tokenizer.from_str(self.vocabulary["rules"]).encode(text).ids
        if self.kind == "word":
            text += "\n" if ended and not text.endswith("\n") else ""
            text = text.replace("\n", " <eos> ").split()
        return [self.numbers.get(token, self.vocabulary["unknown"]) for token in text]

    def decode(self, numbers: list[int]) -> str:
        """The text of some tokens."""
        tokens = [self.vocabulary["tokens"][number] for number in numbers]
        if self.kind == "word":
            text = " ".join("\n" if token == "<eos>" else token for token in tokens)
            return text.replace(" \n", "\n").replace("\n ", "\n")
        if self.kind == "char":
            return "".join(token if len(token) == 1 else "\ufffd" for token in tokens)
        return "".join(tokens).encode("latin-1").decode(errors="replace")

    def nats(self, text: str) -> dict:
        """-ln P of each token of a text."""
        y, found = self.encode(text, ended=True), []
        x, carry = [self.vocabulary["boundary"], *y[:-1]], self.start(np.zeros(1, np.int32))
        for at in range(0, len(y), LENGTH):
            chunks = (np.array(part[at : at + LENGTH], np.int32) for part in (x, y))
            both = [np.pad(chunk, (0, LENGTH - len(chunk)))[:, None] for chunk in chunks]
            carry, nats = self.score(self.params, carry, *both)
            found += np.asarray(nats)[:, 0].tolist()
        return {"tokens": y, "nats": found[: len(y)], "total": sum(found[: len(y)])}

    def text(self, prompt="", length=100, temperature=1.0, seed=0) -> dict:
        """A text that begins with the prompt."""
        read, drawn = self.encode(prompt, ended=False), []
        carry, key = self.start(np.zeros(1, np.int32)), jax.random.key(seed)
        token = np.array([self.vocabulary["boundary"]], np.int32)
        for place in range(len(read) + length):
            now = jax.random.key_data(jax.random.fold_in(key, place))
            carry, token, _ = self.draw(self.params, carry, token, now, float(temperature))
            if place < len(read):  # a token of the prompt in place of the drawn token
                token = np.array([read[place]], np.int32)
            drawn.append(int(token[0]))
        return {"text": self.decode(drawn)}


TAKES = {
    "/score": {"text": str},
    "/sample": {"prompt": str, "length": int, "temperature": (int, float), "seed": int},
}


def problem(path: str, asked: object) -> str | None:
    """What is wrong with a request; None if nothing is."""
    if path not in TAKES:
        return f"{path} is not served, only {' and '.join(TAKES)}"
    if not isinstance(asked, dict):
        return "the body is no JSON object"
    for name, value in asked.items():
        kind = TAKES[path].get(name)
        if kind is None:
            return f"{name} is not read, only {', '.join(TAKES[path])}"
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{name}={json.dumps(value)} is of another type"
        if kind is not str and not 0 <= value < 2**31:
            return f"{name}={value} must be from 0 to 2^31 - 1"
    return "text is missing" if path == "/score" and not asked.get("text") else None


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)))
        except (ValueError, RecursionError):
            asked = None
        status, answer = 400, {"error": problem(self.path, asked)}
        try:
            if answer["error"] is None:
                answers = {"/score": model.nats, "/sample": model.text}
                status, answer = 200, answers[self.path](**asked)
        except UnicodeEncodeError:
            answer = {"error": "the text holds a lone surrogate"}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


if __name__ == "__main__":
    model = Model(Path(sys.argv[1]))
    server = HTTPServer(("localhost", int(sys.argv[2]) if len(sys.argv) > 2 else 8000), Handler)
    print(f"listening on port {server.server_port}", flush=True)
    server.serve_forever()
