"""Topics as their commands call them."""

import pytest

from nearpeak.bounds import topics


@pytest.fixture
def run_topic():
    """A topic's explanation, with the defaults of the options that are not given."""

    def run(name, **given):
        topic = topics()[name]
        return topic.explain(**{o.name: given.get(o.name, o.default) for o in topic.options})

    return run
