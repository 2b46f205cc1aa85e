"""Walk of the trees: ask every model at every state, grade, continue the drawn branches.

Pure except for its caller's calls. Everything paid for is in the journal before it is used, so a walk after a kill
takes the same path and asks only for what is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from train.progress import StepProgress
from train.rollout import prompts as words
from train.rollout.client import CallFailed, OutOfMoney, RolloutCall, RolloutClient
from train.rollout.graders import Grade, Limits, run_check
from train.rollout.journal import Journal
from train.rollout.tasks import Task
from train.rollout.tree import (
    GradedAnswer,
    ModelAnswer,
    PlayedTree,
    RolloutPlan,
    State,
    Visited,
    as_record,
    continued_models,
    conversation,
    planned_answers,
)

Messages = list[dict[str, str]]
CHECKS_AT_ONCE = 2
JUDGEMENTS = 3
"""Attempts to get a score from a judge."""


@dataclass(frozen=True, slots=True)
class Walk:
    """Dependencies of a walk. `tasks_at_once` trees grow in parallel; the caller limits calls."""

    plan: RolloutPlan
    caller: RolloutClient
    journal: Journal
    limits: Limits
    tasks_at_once: int
    progress: StepProgress | None = None


async def play(tasks: Sequence[Task], walk: Walk) -> list[PlayedTree]:
    """Play the trees of `tasks`; those that the money does not reach are not `whole`."""
    trees = [PlayedTree(task) for task in tasks]
    steps = _Steps(walk, sum(planned_answers(walk.plan, task) for task in tasks))
    waiting = iter(trees)

    async def one_after_another() -> None:
        for tree in waiting:
            await steps.state(tree, State(tree.task), [])

    async with asyncio.TaskGroup() as group:
        for _ in range(min(walk.tasks_at_once, len(trees))):
            group.create_task(one_after_another())
    return trees


class _Steps:
    def __init__(self, walk: Walk, planned: int) -> None:
        self._walk = walk
        self._checks = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._done, self._planned = 0, planned

    async def state(self, tree: PlayedTree, state: State, before: Messages) -> None:
        """Play every model at one state, then the states below."""
        plan = self._walk.plan
        try:
            user = await self._user(state, before)
        except OutOfMoney:
            tree.whole = False
            return
        except CallFailed:
            tree.failed += 1
            return
        if user is None:
            return
        visited = Visited(state, user)
        tree.visited.append(visited)
        messages = conversation(state.task, before, user)
        branches = continued_models(plan, state)
        async with asyncio.TaskGroup() as group:
            for model in plan.models:
                group.create_task(self._node(tree, visited, model, messages, model in branches))

    async def _node(self, tree: PlayedTree, visited: Visited, model: str, messages: Messages, goes_on: bool) -> None:
        name = visited.state.name(model)
        try:
            answer = await self._answer(name, model, messages, visited.state.task)
            grade = await self._grade(name, visited.state, messages, answer)
        except OutOfMoney:
            tree.whole = False
            return
        except CallFailed:
            tree.failed += 1
            return
        visited.graded[model] = GradedAnswer(answer, grade.score, grade.note)
        self._done += 1
        if self._walk.progress is not None:
            self._walk.progress(self._done, self._planned)
        if goes_on:
            said = {"role": "assistant", "content": answer.text}
            await self.state(tree, visited.state.after(model), [*messages, said])

    async def _answer(self, name: str, model: str, messages: Messages, task: Task) -> ModelAnswer:
        return await self._asked("answer", RolloutCall(name, model, messages, task.parameters))

    async def _user(self, state: State, before: Messages) -> str | None:
        """The user's message at a state: the task's, or the user model's; None when they are done."""
        task, model = state.task, self._walk.plan.user
        if state.turn < len(task.turns):
            return task.turns[state.turn].user
        assert model is not None
        assert task.persona is not None
        asked = words.user_messages(task.persona, before)
        return words.read_user((await self._asked("user", RolloutCall(f"{state.name()}:user", model, asked, {}))).text)

    async def _grade(self, name: str, state: State, messages: Messages, answer: ModelAnswer) -> Grade:
        found = self._walk.journal.find("grade", name)
        if found is not None:
            return Grade(found["score"], found["note"])
        check = state.task.check_of(state.turn)
        if "judge" in check:
            grade = await self._judged(name, check["judge"], messages, answer)
        else:
            async with self._checks:
                grade = await run_check(check, answer.text, messages, self._walk.limits)
        self._walk.journal.write("grade", name, {"score": grade.score, "note": grade.note})
        return grade

    async def _judged(self, name: str, rubric: str, messages: Messages, answer: ModelAnswer) -> Grade:
        model = self._walk.plan.judge
        assert model is not None
        asked = words.judge_messages(rubric, messages, answer.text)
        for attempt in range(JUDGEMENTS):
            judgement = await self._asked("judge", RolloutCall(f"{name}:judge{attempt}", model, asked, {}))
            score = words.read_score(judgement.text)
            if score is not None:
                return Grade(score, "judged")
        raise CallFailed(f"{model}: expected a score from 0 to 10, got none in {JUDGEMENTS} judgements")

    async def _asked(self, kind: str, call: RolloutCall) -> ModelAnswer:
        """The journal's answer, or a new one, which is written there first."""
        found = self._walk.journal.find(kind, call.name)
        if found is not None:
            return ModelAnswer(**found)
        answer = await self._walk.caller.ask(call)
        self._walk.journal.write(kind, call.name, as_record(answer))
        return answer
