"""One report for all suites of a run, printed and saved at its end."""

from collections.abc import Iterator

import pytest
from report import ROOT, Report
from rich.console import Console


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    report = Report()
    yield report
    if report.rows or report.listings:
        # pytest would keep what is printed in a fixture's teardown
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            console = Console(width=160)
            console.print()
            report.print(console)
            console.print(f"saved to {report.save(ROOT / 'benchmark-results').relative_to(ROOT)}")
