"""What tests share: hypothesis settings, a language model small enough to train in a second, and params for it."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings
from small_model import write_tiny_model
from small_params import write_tiny_params

# Shared machines cannot keep deadlines.
settings.register_profile("sgpo", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("sgpo")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a chat model with two layers and random weights; its answers are noise, but never twice the same."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny_params_file(tmp_path, tiny_model) -> Path:
    """A complete params file for the tiny model, in a root of its own."""
    return write_tiny_params(tmp_path, tiny_model)


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, for tests of pages."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium` to test the pages")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def pytest_collection_modifyitems(items):
    """Begin with the notebooks, which take the longest, so that what runs beside them ends before they do."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
