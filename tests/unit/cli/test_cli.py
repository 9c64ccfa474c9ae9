from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import ernie_accel as ea
from ernie_accel.cli import options
from ernie_accel.cli.chat import Session
from ernie_accel.cli.main import COMMANDS, main

Out = pytest.CaptureFixture[str]
LoadMock = Callable[..., ea.Model]
Answers = Callable[..., None]


class Stdin(io.StringIO):
    def __init__(self, text: str, terminal: bool = False) -> None:
        super().__init__(text)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def answers(load_mock: LoadMock, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Let the commands that load a model get a mock with these answers."""

    def use(reply: str = "", **more: object) -> None:
        for command in ("generate", "chat"):
            module = __import__(f"ernie_accel.cli.{command}", fromlist=["load_model"])
            monkeypatch.setattr(module, "load_model", lambda args: load_mock(reply, **more))

    return use


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda text, terminal=False: monkeypatch.setattr(sys, "stdin", Stdin(text, terminal))


# The dispatcher.


def test_help_names_every_command(capsys: Out) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: Out) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: ernie-accel {command}" in capsys.readouterr().out


def test_wrong_usage_exits_with_2(capsys: Out) -> None:
    for argv in (["sing"], ["generate"], ["info", "--jso"]):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2


def test_without_arguments_it_says_what_there_is(capsys: Out) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert "continue a prompt" in printed.err
    assert printed.out == ""


def test_version(capsys: Out) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"ernie-accel {ea.__version__}\n"


def test_a_mistake_is_one_line_and_code_2(tmp_path: Path, capsys: Out) -> None:
    assert main(["info", str(tmp_path / "nowhere")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert "nowhere" in errors
    assert errors.count("\n") == 1


def test_a_failure_that_is_nobodys_mistake_is_code_1(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    def fail(args: object) -> ea.Model:
        raise ea.CapacityError("no memory\nat all")

    monkeypatch.setattr("ernie_accel.cli.generate.load_model", fail)
    assert main(["generate", "model", "x"]) == 1
    assert capsys.readouterr().err == "error: no memory at all\n"


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: object) -> ea.Model:
        raise KeyboardInterrupt

    monkeypatch.setattr("ernie_accel.cli.generate.load_model", interrupt)
    assert main(["generate", "model", "x"]) == 130


def test_a_reader_that_leaves_is_no_traceback(checkpoint_directory: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ernie_accel", "info", str(checkpoint_directory)]
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (run.returncode, run.stderr) == (1, "")


# info and doctor.


def test_info_prints_the_table(checkpoint_directory: Path, capsys: Out) -> None:
    assert main(["info", str(checkpoint_directory)]) == 0
    text = capsys.readouterr().out
    assert "ernie4_5" in text
    assert "127.3 k (embedding 41.0 k" in text


def test_info_as_json(checkpoint_directory: Path, capsys: Out) -> None:
    assert main(["info", str(checkpoint_directory), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["total_parameters"] == ea.inspect(checkpoint_directory).total_parameters
    assert values["files"] == ["model.safetensors"]
    assert "backend" not in values


def test_doctor_prints_the_report(capsys: Out) -> None:
    code = main(["doctor"])
    assert "instruction set" in capsys.readouterr().out
    assert code == (0 if ea.backends()["native"].ok else 1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--backend", "native", "--precision", "int8"], 0, "native"),
        (["--backend", "native", "--precision", "fp8"], 2, "precision='fp8': backend 'native' has"),
        (["--backend", "native", "--tensor-parallel", "2"], 2, "backend 'native' splits no model; use 1"),
        (["--backend", "nativ"], 2, "did you mean 'native'?"),
    ],
)
def test_doctor_fails_where_loading_would(
    arguments: list[str], code: int, said: str, checkpoint_directory: Path, capsys: Out
) -> None:
    assert main(["doctor", str(checkpoint_directory), *arguments]) == code
    assert said in "".join(capsys.readouterr())


def test_doctor_fails_for_a_backend_that_cannot_run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.setenv("ERNIE_ACCEL_FASTDEPLOY_PYTHON", "/nowhere/python")
    assert main(["doctor", "--backend", "fastdeploy-ort"]) == 1
    if find_spec("onnx") is not None:  # else that is what is missing first
        assert "/nowhere/python" in capsys.readouterr().out


def test_doctor_as_json(capsys: Out) -> None:
    main(["doctor", "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values["threads"] >= 1
    assert {row["name"] for row in values["backends"]} >= {"native", "reference"}


# generate.


def test_generate_streams_the_text(answers: Answers, capsys: Out) -> None:
    answers("It is noon.")
    assert main(["generate", "model", "What time is it?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "It is noon.\n"
    assert captured.err == ""


def test_generate_reads_standard_input(answers: Answers, stdin: Callable[..., None], capsys: Out) -> None:
    answers("no", replies={"What time\nis it?": "noon"})
    stdin("What time\nis it?\n")
    main(["generate", "model", "-"])
    assert capsys.readouterr().out == "noon\n"


def test_generate_can_chat(load_mock: LoadMock, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    asked = []
    model = load_mock("Hello.")
    stream_chat = model.stream_chat

    def listen(messages: list[ea.Message], params: ea.SamplingParams) -> ea.TokenStream:
        asked.append(messages)
        return stream_chat(messages, params)

    monkeypatch.setattr(model, "stream_chat", listen)
    monkeypatch.setattr("ernie_accel.cli.generate.load_model", lambda args: model)
    assert main(["generate", "model", "Hi", "--chat", "--system", "Be brief."]) == 0
    assert capsys.readouterr().out == "Hello.\n"
    assert asked == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]]


def test_generate_prints_timings_apart(answers: Answers, capsys: Out) -> None:
    answers("It is noon.")
    main(["generate", "model", "x", "--timings", "--seed", "9"])
    captured = capsys.readouterr()
    assert captured.out == "It is noon.\n"
    assert "stop, seed 9" in captured.err
    assert "tokens/s" in captured.err


def test_options_reach_the_library(checkpoint_directory: Path, capsys: Out) -> None:
    argv = ["generate", str(checkpoint_directory), "Hello", "--backend", "reference", "--no-progress"]
    argv += ["--temperature", "0", "--max-tokens", "5", "--max-context", "64"]
    assert main(argv) == 0
    with ea.Model.load(checkpoint_directory, backend="reference") as model:
        expected = model.generate("Hello", temperature=0, max_tokens=5).text
    assert capsys.readouterr().out == expected + "\n"
    assert main([*argv, "--precision", "int8"]) == 2
    assert main([*argv, "--top-p", "3"]) == 2
    assert main([*argv, "--device", "gpu"]) == 2
    assert main([*argv, "--tensor-parallel", "2"]) == 2


def test_sampling_options_are_the_fields() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    options.add_sampling_arguments(parser)
    text = (
        "--max-tokens 3 --temperature 0.5 --top-p 0.6 --top-k 7 --min-p 0.1 --repetition-penalty 1.1 "
        "--presence-penalty 0.2 --frequency-penalty 0.3 --seed 4 --stop a --stop b --ignore-eos"
    )
    argv = text.split()
    assert options.sampling_params(parser.parse_args(argv)) == ea.SamplingParams(
        max_tokens=3,
        temperature=0.5,
        top_p=0.6,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=4,
        stop=("a", "b"),
        ignore_eos=True,
    )
    assert options.sampling_params(parser.parse_args([])) == ea.SamplingParams()


def test_structure_options_are_the_fields(tmp_path: Path) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    options.add_sampling_arguments(parser)
    (tmp_path / "file").write_text('{"type": "null"}', encoding="utf-8")
    file = str(tmp_path / "file")
    for argv, fields in (
        (["--json-schema", file], {"json_schema": '{"type": "null"}'}),
        (["--grammar", file], {"grammar": '{"type": "null"}'}),
        (["--regex", "a+"], {"regex": "a+"}),
        (["--choice", "yes", "--choice", "no"], {"choices": ["yes", "no"]}),
    ):
        assert options.sampling_params(parser.parse_args(argv)) == ea.SamplingParams(**fields)
    with pytest.raises(SystemExit):
        parser.parse_args(["--regex", "a", "--choice", "b"])
    with pytest.raises(ea.ArgumentError, match=r"--grammar .*nothing: cannot be read"):
        options.sampling_params(parser.parse_args(["--grammar", str(tmp_path / "nothing")]))


# chat.


def test_chat_answers_line_by_line(answers: Answers, stdin: Callable[..., None], capsys: Out) -> None:
    answers("Nice.")
    stdin("Hello\n\nAnd you?\n")
    assert main(["chat", "model"]) == 0
    assert capsys.readouterr().out == "Nice.\nNice.\n"


def test_chat_commands(answers: Answers, stdin: Callable[..., None], capsys: Out) -> None:
    answers("Nice.")
    stdin("/help\n/sing a song\n/exit\nHello\n")
    assert main(["chat", "model"]) == 0
    text = capsys.readouterr().out
    assert "/reset" in text
    assert "unknown command /sing;" in text
    assert "Nice." not in text


def test_chat_greets_on_a_terminal(answers: Answers, stdin: Callable[..., None], capsys: Out) -> None:
    answers("Nice.")
    stdin("Hello\n", terminal=True)
    main(["chat", "model"])
    text = capsys.readouterr().out
    assert "tiny-ERNIE (fp32 on mock)" in text
    assert text.endswith("> Nice.\n> \n")


def test_a_conversation_is_remembered_until_reset(load_mock: LoadMock, stdin: Callable[..., None]) -> None:
    stdin("One\nTwo\n/reset\n")
    with load_mock("Nice.") as model:
        session = Session(model, ea.SamplingParams(), "Be brief.")
        session.turn()
        session.turn()
        assert [(m["role"], m["content"]) for m in session.conversation.messages] == [
            ("system", "Be brief."),
            ("user", "One"),
            ("assistant", "Nice."),
            ("user", "Two"),
            ("assistant", "Nice."),
        ]
        session.turn()
        assert session.conversation.messages == [{"role": "system", "content": "Be brief."}]
        assert not session.turn()


def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(
    load_mock: LoadMock, stdin: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    from ernie_accel.backends.mock import MockRunner

    main = threading.main_thread().ident
    assert main is not None
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    stdin("One\nTwo\n")
    printed, end = sys.stdout.getvalue, time.monotonic() + 20  # type: ignore[union-attr]
    with load_mock("0123456") as model:
        forward, steps = MockRunner.forward, []

        def interrupted(runner: MockRunner, batch: object) -> object:
            steps.append(batch)
            if len(steps) == 4:
                while not printed().endswith("012") and time.monotonic() < end:
                    time.sleep(0.001)
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.1)
            return forward(runner, batch)  # type: ignore[arg-type]

        monkeypatch.setattr(MockRunner, "forward", interrupted)
        session = Session(model, ea.SamplingParams(), None)
        try:
            assert session.turn()
        finally:
            signal.signal(signal.SIGINT, old)
        assert session.conversation.messages[-1]["content"].startswith("012")
        assert session.turn()
        assert session.conversation.messages[-1]["content"] == "0123456"
    first, second = capsys.readouterr().out.splitlines()
    assert (first, second) == ("012 (stopped)", "0123456")


def test_ctrl_c_while_a_piece_is_printed_keeps_the_answer_too(
    load_mock: LoadMock, stdin: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(text: str = "", **options: object) -> None:
        if text == "1":
            raise KeyboardInterrupt

    stdin("Count\n")
    monkeypatch.setattr("builtins.print", interrupted)
    with load_mock("0123456", step_seconds=0.01) as model:
        session = Session(model, ea.SamplingParams(), None)
        assert session.turn()
        assert session.conversation.messages[-1]["content"].startswith("01")


def test_ctrl_c_at_the_prompt_keeps_the_session(
    load_mock: LoadMock, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    with load_mock("Nice.") as model:
        assert Session(model, ea.SamplingParams(), None).turn()
    assert "Ctrl-D or /exit leaves" in capsys.readouterr().out


def test_a_failed_answer_leaves_the_conversation_as_it_was(
    load_mock: LoadMock, stdin: Callable[..., None], capsys: Out
) -> None:
    stdin("Hello " * 300 + "\nHi\n")
    with load_mock("Nice.") as model:
        session = Session(model, ea.SamplingParams(), None)
        assert session.turn()
        assert session.conversation.messages == []
        assert "error: " in capsys.readouterr().err
        session.turn()
        assert len(session.conversation.messages) == 2


# shard


def test_shard_splits_verifies_and_merges(tmp_path: Path, capsys: Out) -> None:
    ea.testing.synthetic(ea.testing.tiny_config(True)).write(tmp_path / "m")
    source, ranks, back = (str(tmp_path / name) for name in ("m", "r", "b"))
    assert main(["shard", source, ranks, "--ranks", "2", "--experts", "whole", "--verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ranks"], found["experts"]) == ("2", "whole")
    assert found["verified"].endswith("are what was written")
    assert main(["shard", ranks, "--verify"]) == 0
    assert "are what was written" in capsys.readouterr().out
    assert main(["shard", ranks, back, "--merge", "--no-progress"]) == 0
    assert "each tensor with the hash that it had" in capsys.readouterr().out
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == (
        tmp_path / "m" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m"], "TARGET is missing"),
        (["m", "--ranks", "2"], "TARGET is missing"),
        (["m", "r"], "--ranks N to split, or --merge"),
        (["m", "r", "--ranks", "2", "--merge"], "--ranks N to split, or --merge"),
        (["m", "r", "--ranks", "3"], "must be one of 1, 2, 4"),
        (["m", "--verify"], "holds no ranks"),
    ],
)
def test_shard_says_what_is_wrong(
    arguments: list[str], words: str, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    ea.testing.synthetic(ea.testing.tiny_config()).write(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    assert main(["shard", *arguments]) == 2
    assert words in capsys.readouterr().err
