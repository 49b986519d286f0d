"""The examples under "Topics" of docs/mqtt.md, in their order, at a running edge core."""

import re
from pathlib import Path

from tests.edgecore.local_apps import Apps

PAGE = Path(__file__).parent.parent.parent / "docs" / "mqtt.md"
EXAMPLES = re.compile(r"<!-- example -->\n```\n(.*?)```", re.DOTALL)
LINE = re.compile(r"^([→←]) (\S+)\n  (.*)$", re.MULTILINE)


def compact(text: str) -> str:
    return re.sub(r"([:,]) ", r"\1", text)


async def test_the_examples_are_what_is_heard(apps: Apps) -> None:
    _, _, topics = PAGE.read_text().partition("\n## Topics\n")
    topics = topics.partition("\n## ")[0]
    lines = [line for example in EXAMPLES.findall(topics) for line in LINE.findall(example)]
    assert len(lines) > 12
    for direction, topic, payload in lines:
        if direction == "→":
            await apps.has_heard_all()
            await apps.say(topic, payload.encode())
            continue
        heard = await apps.hear_raw()
        pattern = ".+?".join(re.escape(part) for part in compact(payload).split("…"))
        assert heard.topic == topic
        assert re.fullmatch(pattern, compact(heard.payload.decode())), (payload, heard.payload)
    await apps.has_heard_all()
