"""Look into a run: questions, sampled lists, rewards, what feedback changed; a local page.

    dynarag explore RUN                     # its directory, or its config file
    dynarag explore RUN --port 9000

Serves the page until Ctrl-C or SIGTERM. The run's files are read once, in the background, and again
where they change; what was read of them is kept in RUN/.explore. Nothing else is written. On a host
that trains, JAX_PLATFORMS=cpu before the command leaves the accelerator alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.explore.run_records import RunRecords
from dynarag_jax.explore.server import LOOPBACK, ExploreServer
from dynarag_jax.launch.config_file import read_config
from dynarag_jax.launch.console import Console
from dynarag_jax.launch.positional import Positional
from dynarag_jax.launch.stopping import Terminated


@dataclass(frozen=True)
class Explore:
    """Look into a run: questions, sampled lists, rewards, what feedback changed; a local page."""

    target: Positional[str] = ""
    """the run's directory, or its config file"""
    port: int = 8765
    """where the page is served; 0 takes a free port"""
    host: str = "127.0.0.1"
    """the address to listen on; any other than this machine's own shows the records to whoever
    reaches it"""


def run(console: Console, options: Explore) -> None:
    """Serve the page until somebody stops it."""
    if not options.target:
        raise InputError("explore: name the run: dynarag explore RUN")
    if not 0 <= options.port < 1 << 16:
        raise InputError(f"explore: port = {options.port} must be from 0 to 65535")
    root = Path(options.target)
    if root.suffix == ".py":
        root = Path(read_config(root)[0].directory)
    records = RunRecords(root, console.log)
    with ExploreServer(records, options.host, options.port) as server:
        console.print(f"exploring {root} at {server.url}")
        if options.host not in LOOPBACK:
            console.log(f"{options.host or 'every address'}: whoever reaches it reads the records")
        records.refresh()
        try:
            server.serve_forever(poll_interval=0.2)
        except (KeyboardInterrupt, Terminated):
            console.log("stopped")
