"""Show a job in the browser: on its server's console where one runs, else as its state folder has it.

Of folders that no server with a console has open, and of several, pages are served here that show and change nothing.
Runs of simulate and demo are such folders too, also while they run.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

from fedspzo.options.endpoint import add_endpoint_options, read_address
from fedspzo.options.log import add_log_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER",
        help="the --state folder of a server or a simulation, or the folder of a demo",
    )  # fmt: skip
    add_endpoint_options(parser, "the pages", "127.0.0.1:0")
    add_log_options(parser)


def run(options: argparse.Namespace) -> None:
    """Say where the console is, and serve it where nobody does."""
    import secrets

    from fedspzo.broker.server.console.app import make_console, make_site
    from fedspzo.broker.server.console.gate import Gate
    from fedspzo.broker.server.console.job_view import JobView
    from fedspzo.broker.server.http import may_serve_console, serve_app
    from fedspzo.broker.server.state_folder import ADDRESS, DATABASE
    from fedspzo.device_runtime.errors import BrokerError
    from fedspzo.device_runtime.files import is_locked
    from fedspzo.run_folder import SERVER

    folders = [folder if (folder / DATABASE).is_file() else folder / SERVER for folder in options.folders]
    if len(folders) == 1 and (folders[0] / ADDRESS).is_file() and is_locked(folders[0]):
        _show((folders[0] / ADDRESS).read_text(encoding="utf-8"))
        return
    views = [JobView(folder) for folder in folders]
    host, port, tls = read_address(options)
    if not may_serve_console(host, tls is not None):
        raise BrokerError(
            "option.console-without-tls",
            f"{options.http} can be reached by others, and what they read over HTTP; give --http-certificate and"
            " --http-key, or an address of this machine alone, such as 127.0.0.1:8080",
        )
    gate = Gate(dict, secrets.token_urlsafe(24))
    with serve_app(make_site(make_console(views, gate, tls is not None)), host, port, tls) as url:
        _show(f"{url}/console/enter?key={gate.link}")
        threading.Event().wait()  # until Ctrl-C or SIGTERM


def _show(url: str) -> None:
    """Print where the console is, and open it where there is a screen."""
    print(f"the console is at {url}", flush=True)
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        import webbrowser

        webbrowser.open(url)
