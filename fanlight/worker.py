"""Python's side of the page: requests → pipelines. In: a request, its fields as JSON. Out: JSON.

    create    {task, model, device, options} → {pipeline, info}      progress: {stage, done, total}
    generate  {pipeline, prompt, options} → {text, tokens, prompt_tokens, finish_reason, timings}
              chunks: pieces of text; once the prompt is tokenised, progress:
              {stage: "prefill", done, total}, in tokens
    open_session  {model, providers, overrides, relaxed_simd, profile} → {session, info}, what
              ``InferenceSession.described`` says, and the names of external files; progress as in
              create
    dispose   {pipeline} or {session} → null

``web/python_worker.js`` calls :meth:`Worker.serve` and :meth:`Worker.abort`. An aborted create
raises AbortedError; an aborted generate ends as usual, with what there is and the finish reason
``abort``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fanlight.errors import AbortedError, FanlightError, InputError
from fanlight.pipelines import pipeline
from fanlight.runtime.error_messages import to_message
from fanlight.runtime.session import Progress
from fanlight.tasks.text_generation import Generation, TextGeneration

if TYPE_CHECKING:
    from fanlight.inference.session import InferenceSession

Emit = Callable[[str, str], object]  # "progress" or "chunk", and JSON
Fields = dict[str, Any]


class Worker:
    """The pipelines of a page. Numbers name them, and the requests in flight."""

    def __init__(self) -> None:
        self._pipelines: dict[int, TextGeneration] = {}
        self._sessions: dict[int, InferenceSession] = {}
        self._answers: dict[int, tuple[int, Generation]] = {}  # request → pipeline and answer
        self._aborts: dict[int, Callable[[], object]] = {}
        self._early: set[int] = set()  # requests that were aborted before they began
        self._next = 1
        self._requests: dict[str, Callable[[int, Fields, Emit], Awaitable[Any]]] = {
            "create": self._create,
            "open_session": self._open_session,
            "generate": self._generate,
            "dispose": self._dispose,
        }

    def serve(self, number: int, request: str, fields: str, emit: Emit) -> Awaitable[str]:
        """``{"value": …}`` or ``{"error": {code, message, what, where, hint}}``; never raises."""
        self._aborts[number] = lambda: self._early.add(number)
        return self._serve(number, request, fields, emit)

    async def _serve(self, number: int, request: str, fields: str, emit: Emit) -> str:
        task = asyncio.current_task()
        assert task is not None
        self._aborts[number] = task.cancel
        try:
            if number in self._early:
                self._early.remove(number)
                raise AbortedError("aborted")
            value = await self._requests[request](number, json.loads(fields), emit)
            return json.dumps({"value": value})
        except asyncio.CancelledError:
            return json.dumps({"error": to_message(AbortedError("aborted"))})
        except Exception as error:  # noqa: BLE001 - whatever it is, the page must hear of it
            if not isinstance(error, FanlightError):
                traceback.print_exception(error)
            return json.dumps({"error": to_message(error)})
        finally:
            self._aborts.pop(number, None)

    def abort(self, number: int) -> None:
        """Ends a request soon; one that has ended already is left alone."""
        if number in self._aborts:
            self._aborts[number]()

    async def _create(self, number: int, fields: Fields, emit: Emit) -> Fields:
        def progress(event: Progress) -> None:
            emit("progress", json.dumps(dataclasses.asdict(event)))

        made = await pipeline(
            fields["task"],
            fields["model"],
            device=fields["device"],
            progress=progress,
            **fields["options"],
        )
        key, self._next = self._next, self._next + 1
        self._pipelines[key] = made
        info = dataclasses.asdict(made.session.info)
        return {"pipeline": key, "info": info | {"context": made.context, "timings": made.timings}}

    async def _open_session(self, number: int, fields: Fields, emit: Emit) -> Fields:
        from fanlight.inference.session import InferenceSession

        def progress(event: Progress) -> None:
            emit("progress", json.dumps(dataclasses.asdict(event)))

        made = await InferenceSession.create(
            fields["model"],
            execution_providers=fields["providers"],
            free_dimension_overrides=fields["overrides"],
            relaxed_simd=fields["relaxed_simd"],
            profile=fields["profile"],
            progress=progress,
        )
        key, self._next = self._next, self._next + 1
        self._sessions[key] = made
        info = dataclasses.asdict(made.info)
        return {"session": key, "info": info, "external": made.external, **made.described()}

    async def _generate(self, number: int, fields: Fields, emit: Emit) -> Fields:
        made = self._pipelines.get(fields["pipeline"])
        if made is None:
            raise AbortedError("the pipeline was disposed")
        answer = made.stream(fields["prompt"], **known_options(fields["options"]))
        self._aborts[number] = answer.abort
        self._answers[number] = fields["pipeline"], answer
        total = len(answer.prompt_tokens)
        emit("progress", json.dumps({"stage": "prefill", "done": 0, "total": total}))
        try:
            async for piece in answer:
                emit("chunk", json.dumps(piece))
        finally:
            del self._answers[number]
        return {
            "text": answer.text,
            "tokens": answer.tokens,
            "prompt_tokens": total,
            "finish_reason": answer.finish_reason,
            "timings": answer.timings,
        }

    async def _dispose(self, number: int, fields: Fields, emit: Emit) -> None:
        if "session" in fields:
            session = self._sessions.pop(fields["session"], None)
            if session is not None:
                await session.dispose()
            return
        made = self._pipelines.pop(fields["pipeline"], None)
        for key, answer in list(self._answers.values()):
            if key == fields["pipeline"]:
                answer.abort()
        if made is not None:
            await made.dispose()


def known_options(options: Fields) -> Fields:
    """``options`` of an answer, checked by name. Raises InputError."""
    known = TextGeneration.stream.__kwdefaults__ or {}
    for name in options:
        if name not in known:
            raise InputError("unknown option", got=name, wanted=", ".join(known))
    return options
