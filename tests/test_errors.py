"""Errors are data as well as exceptions: they cross process borders and JSON unharmed."""

from __future__ import annotations

import json
import pickle

from reconflow.errors import ErrorCode, InvalidFileCountError, ReconflowError


def test_an_error_survives_pickling_with_all_it_says() -> None:
    error = InvalidFileCountError("5 views, 6 are needed.", suggestion="Add one.", found=5)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InvalidFileCountError
    assert copy.to_dict() == error.to_dict()
    assert str(copy) == "5 views, 6 are needed."


def test_an_error_becomes_json_with_its_code() -> None:
    error = ReconflowError("Something.", suggestion="Try again.", number=1)
    assert json.loads(json.dumps(error.to_dict()))["code"] == ErrorCode.UNKNOWN_ERROR
