"""Clients of all kinds on a real connection: OpenAI's, slow ones, those that leave, and the end of the server."""

from __future__ import annotations

import base64
import io
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import uvicorn

from tokenizers_vq.images import png_bytes
from unitok.cli.main import main
from unitok.model import UniTok
from unitok.sample.documents import DocumentWriter, write_documents
from unitok.sample.inpainting import inpaint
from unitok.sample.pictures import codes_of
from unitok.sample.pipeline import GREEDY, answer, caption, decoded, draw
from unitok.sample.serving.api import Access
from unitok.sample.serving.guards import patient
from unitok.sample.serving.limits import Limits
from unitok.sampling import SampleSettings

FEW = SampleSettings(guidance=2.0, steps=3)
GIVEN = {"guidance": 2.0, "steps": 3, "seed": 4}


def request(body: dict[str, Any], path: str = "/v1/images/generations") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def received(connection: socket.socket) -> bytes:
    """All until the server closes the connection."""
    parts = []
    while part := connection.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def test_openai_s_client(
    make_model: Callable[..., UniTok],
    listen: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    model, given = make_model("masked_token"), picture()
    mask = torch.zeros(3, 32, 32, dtype=torch.uint8)
    mask[:, :16] = 255
    wanted = png_bytes(draw(model, ["a red circle"], FEW, [4])[0])
    with (
        listen(model, Access(keys=["secret"])) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client,
    ):
        (one,) = client.models.list().data
        assert one.id == "tiny"
        found = client.images.generate(model="tiny", prompt="a red circle", size="32x32", extra_body=GIVEN)
        assert base64.b64decode(found.data[0].b64_json) == wanted and found.data[0].record["seed"] == 4
        edited = client.images.edit(image=png(given), mask=png(mask), prompt="a red circle", extra_body=GIVEN)
        drawn = inpaint(model, given[None], mask[None, 0] > 0, ["a red circle"], FEW, [4])[0]
        assert base64.b64decode(edited.data[0].b64_json) == png_bytes(drawn)
        events = list(client.images.generate(prompt="a red circle", stream=True, partial_images=2, extra_body=GIVEN))
        assert events[-1].type == "image_generation.completed"
        assert base64.b64decode(events[-1].b64_json) == wanted
        url = f"data:image/png;base64,{base64.b64encode(png(given).getvalue()).decode()}"
        parts = [{"type": "text", "text": "how many?"}, {"type": "image_url", "image_url": {"url": url}}]
        said = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
        assert said.choices[0].message.content == answer(model, given[None], ["how many?"])[0]
        said = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts[1:]}])
        assert said.choices[0].message.content == caption(model, given[None], GREEDY)[0]
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt="a", n=99)
        assert refused.value.param == "n" and "draws up to 16" in refused.value.message
        with pytest.raises(openai.NotFoundError):
            client.images.generate(prompt="a", model="other")
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()


def test_a_model_of_documents_answers_where_it_is_told_so(
    make_model: Callable[..., UniTok],
    listen: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    model, given = make_model(), picture()
    model.config.tasks = ("question", "image_to_text", "interleaved")
    url = f"data:image/png;base64,{base64.b64encode(png(given).getvalue()).decode()}"
    parts = [{"type": "text", "text": "how many?"}, {"type": "image_url", "image_url": {"url": url}}]
    with (
        listen(model) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client,
    ):

        def said(task: str, content: list[dict[str, Any]]) -> str:
            messages: Any = [{"role": "user", "content": content}]
            found = client.chat.completions.create(model="tiny", messages=messages, extra_body={"task": task})
            return found.choices[0].message.content or ""

        assert said("question", parts) == answer(model, given[None], ["how many?"])[0]
        assert said("image_to_text", parts[1:]) == caption(model, given[None], GREEDY)[0]


def test_a_chat_of_texts_and_pictures(
    make_model: Callable[..., UniTok],
    listen: Callable[..., Any],
    picture: Callable[..., torch.Tensor],
    png: Callable[..., io.BytesIO],
) -> None:
    model, given = make_model("maskgit"), picture()
    model.config.tasks = ("interleaved",)
    scores = model.ids.scores

    def lean(hidden: torch.Tensor, ids: slice, *more: Any) -> torch.Tensor:
        """Pictures come, and texts end."""
        found = scores(hidden, ids, *more)
        if ids.stop - ids.start == 1:
            found += 12
        return found

    model.ids.scores = lean  # type: ignore[method-assign]
    texts = SampleSettings(guidance=1.0, temperature=0.9)
    writer = DocumentWriter(model, SampleSettings(guidance=1.0), texts, pictures=2, context=300)
    document = [("text", "one"), ("image", codes_of(model, given[None])[0]), ("text", "two")]
    ((_, whole),) = write_documents(writer, [document], [4])
    url = f"data:image/png;base64,{base64.b64encode(png(given).getvalue()).decode()}"
    with (
        listen(model) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client,
    ):
        said = client.chat.completions.create(
            model="tiny",
            messages=[
                {"role": "system", "content": "one"},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]},
                {"role": "user", "content": "two"},
            ],
            seed=4,
            temperature=0.9,
            extra_body={"pictures": 2},
        )
        with pytest.raises(openai.BadRequestError, match="a context of 300 holds"):
            parts = [{"type": "image_url", "image_url": {"url": url}}] * 4
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
    found = said.choices[0].message.parts
    drawn = [decoded(model, value[None], 0)[0] for kind, value in whole[2:] if kind == "image"]
    shown = [part["image_url"]["url"] for part in found if part["type"] == "image_url"]
    assert len(drawn) == 2
    assert [base64.b64decode(one.partition(",")[2]) for one in shown] == [png_bytes(one) for one in drawn]
    words = " ".join(value for kind, value in whole[2:] if kind == "text")
    assert words.removeprefix("two").strip() == said.choices[0].message.content.strip()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_rows(
    make_model: Callable[..., UniTok], listen: Callable[..., Any], wait_until: Callable[..., None], stream: bool
) -> None:
    with listen(make_model("next_token")) as server:
        worker = server.parts.worker
        leaves = server.connect()
        leaves.sendall(request({"prompt": "a", "n": 16, "stream": stream}))
        wait_until(lambda: worker.running == 4)
        leaves.close()
        before = worker.steps
        wait_until(lambda: worker.open == 0 and worker.running == 0)
        assert worker.steps - before < 64, "long before one of them was drawn"
        wait_until(lambda: bool(server.parts.lines))
        assert server.parts.lines[0]["status"] == (200 if stream else 499)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of each connection are here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_half_open_connections_and_slow_clients(make_model: Callable[..., UniTok], listen: Callable[..., Any]) -> None:
    with listen(make_model("maskgit"), patience=1.0) as server:
        silent = [server.connect() for _ in range(1000)]
        half = server.connect()
        half.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost:")
        slow = server.connect()
        slow.sendall(request({"prompt": "a"})[:-3])
        quick = server.connect()
        quick.sendall(request({"prompt": "a", "steps": 2}).replace(b"Host", b"Connection: close\r\nHost"))
        assert received(quick).startswith(b"HTTP/1.1 200"), "the others are served meanwhile"
        huge = server.connect()
        huge.sendall(request({"prompt": "a"}).partition(b"Content-Length")[0] + b"Content-Length: 1073741824\r\n\r\n")
        assert received(huge).startswith(b"HTTP/1.1 413"), "a gigabyte is refused before it is sent"
        assert received(slow).startswith(b"HTTP/1.1 408")
        for connection in [*silent, half]:
            with suppress(ConnectionResetError):
                assert received(connection) == b""
            connection.close()
        assert not server.server.server_state.connections
        nonsense = server.connect()
        nonsense.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert received(nonsense).startswith(b"HTTP/1.1 400")
        for connection in (slow, quick, huge, nonsense):
            connection.close()


def test_a_client_that_does_not_read_is_cut_off(wait_until: Callable[..., None]) -> None:
    async def much(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(much, http=patient(0.3), ws="none", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    with socket.socket() as listening, ThreadPoolExecutor(1) as pool:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        running = pool.submit(server.run, sockets=[listening])
        for reads in (False, True):
            with socket.create_connection(listening.getsockname(), timeout=10) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if reads:
                    assert len(received(client)) > 2**26
                else:
                    wait_until(lambda: len(server.server_state.connections) == 1)
                    wait_until(lambda: not server.server_state.connections)
        server.should_exit = True
        running.result(10)


def test_the_end_waits_for_what_is_being_drawn(
    make_model: Callable[..., UniTok], listen: Callable[..., Any], wait_until: Callable[..., None]
) -> None:
    with listen(make_model("next_token")) as server, ThreadPoolExecutor(1) as pool:
        connection = server.connect()
        connection.sendall(request({"prompt": "a", "n": 2}))
        running = pool.submit(received, connection)
        wait_until(lambda: server.parts.worker.running == 2)
        server.server.should_exit = True
        assert running.result(20).startswith(b"HTTP/1.1 200")
        connection.close()
        wait_until(lambda: not server.parts.worker.alive)
        with pytest.raises(OSError):
            time.sleep(0.1)
            server.connect().close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere"], "model folder nowhere does not exist"),
        (
            ["--model", "FOLDER"],
            "has no config.json and no model.safetensors and no image_tokenizer and no text_tokenizer: is it a",
        ),
        (
            ["--model", "FOLDER", "--port", "TAKEN"],
            "of 127.0.0.1 cannot be had (Address already in use): choose another",
        ),
        (["--model", "FOLDER", "--port", "99999"], "--port is 99999: choose 1 to 65535, or 0 for a free one"),
        (["--model", "FOLDER", "--host", "no.such.host.invalid"], "is no address of this machine"),
        (["--model", "FOLDER", "--api_key_file", "no.txt"], "--api_key_file no.txt is not a file"),
        (["--model", "FOLDER", "--api_key_file", "EMPTY"], "has no key: write one into each line"),
        (["--model", "FOLDER", "--lanes", "2"], "--lanes is 2: choose 3 or more"),
        (["--model", "FOLDER", "--queue", "3"], "--pictures is 16 and --queue 3: a request must fit into the queue"),
    ],
)
def test_what_cannot_be_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        places = {"FOLDER": str(tmp_path), "TAKEN": port, "EMPTY": str(tmp_path / "empty.txt")}
        words = [places.get(word, word) for word in words]
        assert main(["serve", *words, *([] if "--port" in words else ["--port", "0"])]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_documented_limits_are_the_usual_ones() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
    for name, value in vars(Limits()).items():
        assert f"| `--{name}` | {value:,}".removesuffix(".0") in text, name
