"""Generated pages are up to date: recipes/README.md with the schema, clients/commands/ with the commands."""

from __future__ import annotations

import pytest

from clients import command_pages
from recipes.encoder_section import Encoder
from recipes.head_section import Fit, Head
from recipes.reference import PAGE, main, page, sections, type_of
from recipes.schema import Recipe

SECTIONS = dict(sections(Recipe, ""))


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again with: make pages"


@pytest.mark.parametrize("path", SECTIONS)
def test_every_key_is_explained(path):
    assert [name for name, field in SECTIONS[path].model_fields.items() if not field.description] == []


def test_sections_are_found_where_they_stand():
    assert SECTIONS["heads[].fit"] is Fit
    assert SECTIONS["heads[]"] is Head
    assert SECTIONS["encoder"] is Encoder


def test_types_are_told_in_words():
    assert type_of(Encoder.model_fields["decode"].annotation) == "`exact` or `scaled`"
    assert type_of(Fit.model_fields["near_duplicate_cosine"].annotation) == "number"
    assert type_of(Fit.model_fields["hidden_sizes"].annotation) == "list of integer"


def test_a_page_that_is_out_of_date_is_found(tmp_path, capsys):
    (tmp_path / "README.md").write_text("old")
    assert main(["--check"], tmp_path / "README.md") == 1
    assert "python -m recipes.reference" in capsys.readouterr().err


def test_the_pages_of_the_commands_are_their_help():
    for path, text in command_pages.pages().items():
        assert path.read_text(encoding="utf-8") == text, "write it again with: make pages"
