"""The block that says where weights are, and what runs make of it."""

from __future__ import annotations

import pytest

from blocks.model_weights import ModelWeightsBlock, using_weights
from reconflow.errors import ValidationFailedError
from reconflow.storage.access import access_for

pytestmark = pytest.mark.prefect


@pytest.mark.usefixtures("prefect_server")
def test_a_saved_block_gives_the_place_and_its_access_for_the_length_of_a_block_of_code() -> None:
    block = ModelWeightsBlock(
        uri="s3://models/reconviagen", endpoint_url="http://127.0.0.1:9", access_key_id="key", secret_access_key="word"
    )
    block.save("lab", overwrite=True)
    with using_weights("block://lab", None, "folder") as found:
        assert found == ("s3://models/reconviagen", None, "folder")
        assert access_for("s3://models/reconviagen").secret == "word"
    assert access_for("s3://models/reconviagen").secret != "word"


@pytest.mark.usefixtures("prefect_server")
def test_a_block_that_is_not_there_is_named() -> None:
    with pytest.raises(ValidationFailedError, match="'nobody'"), using_weights("block://nobody"):
        pass
