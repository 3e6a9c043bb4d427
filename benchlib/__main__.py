"""`python -m benchlib serve`, `report`, `page` and `load-worker`: argument parsing only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from benchlib.printing import print_line


def main(arguments: list[str] | None = None) -> int:
    """Run one command. The exit status is 2 for bad arguments, 1 if the server could not start.

    It is 4 if the server's engine has ended by an error.
    """
    from benchlib.answers import read_headlines
    from benchlib.load.standing_worker import work
    from benchlib.load.workers import DEFAULT_PORT
    from benchlib.report import write_report
    from benchlib.serving.engine.options import in_words
    from benchlib.serving.standalone import Settings, serve_alone

    # 1) `serve` takes every setting as an option
    about = "Serve Stable Diffusion XL to be measured, or show what was measured."
    parser = argparse.ArgumentParser(prog="python -m benchlib", description=about)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP until interrupted",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Options that are not given are read from BENCHLIB_MODEL, BENCHLIB_DEVICE and so "
        "on. The key that clients must send is read from BENCHLIB_API_KEY alone.",
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every network"
    )
    serve.add_argument(
        "--port", default=8000, type=_port, help="port to listen on; 0 for a free one"
    )
    for name, field in Settings.model_fields.items():
        option = "--" + name.replace("_", "-")
        if name == "loras":
            words = "an adapter, as in --lora style=a.safetensors; may be given several times"
            serve.add_argument(
                "--lora",
                dest=name,
                action="append",
                metavar="NAME=PATH",
                default=argparse.SUPPRESS,
                help=words,
            )
            continue
        if name == "api_key":  # whoever is on the machine can read its command lines
            continue
        if field.annotation is bool:
            switch = argparse.BooleanOptionalAction
            serve.add_argument(
                option, action=switch, default=argparse.SUPPRESS, help=field.description
            )
            continue
        serve.add_argument(option, default=argparse.SUPPRESS, help=field.description)

    # 2) `report` takes a folder
    report = commands.add_parser("report", help="write index.html, a page of all results")
    report.add_argument(
        "--results",
        help="folder of the studies; by default BENCHLIB_RESULTS or the project's results/",
    )

    # 3) `page` takes an executed notebook
    page = commands.add_parser("page", help="write the web pages of an executed notebook")
    page.add_argument("notebook", type=Path, help="the .ipynb; the pages get its name and folder")

    # 4) `load-worker` takes the place of the run
    worker = commands.add_parser(
        "load-worker",
        help='send a share of a load: run_load(workers="external") runs elsewhere',
        epilog="Where others can reach the master, BENCHLIB_LOAD_TOKEN holds the same secret on both "
        "sides. The key that the load sends is read from BENCHLIB_LOAD_API_KEY.",
    )
    worker.add_argument("--master", required=True, metavar="HOST", help="where run_load runs")
    worker.add_argument("--port", default=DEFAULT_PORT, type=_port, help="its port")
    worker.add_argument("--once", action="store_true", help="end after one run")

    # 5) Run the command
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    if command == "page":
        from benchlib.notebook_pages import write_pages

        try:
            write_pages(given["notebook"])
        except (OSError, ValueError) as error:
            page.error(str(error))
        return 0
    if command == "report":
        try:
            path = write_report(given["results"])
            print_line(path)
            for name, headline in read_headlines(path.parent).items():
                print_line(f"{name}: {headline}")
        except (OSError, ValueError) as error:
            report.error(str(error))
        return 0
    if command == "load-worker":
        try:
            return work(given["master"], given["port"], once=given["once"])
        except ValueError as error:
            worker.error(str(error))
    host = given.pop("host")
    port = given.pop("port")
    try:
        settings = Settings(**given)
        settings.door_options().uvicorn_options()
    except ValidationError as error:
        serve.error(in_words(error))
    except ValueError as error:
        serve.error(str(error))
    return serve_alone(settings, host=host, port=port)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 2**16:
        raise argparse.ArgumentTypeError(f"{port} is not between 0 and 65535")
    return port


if __name__ == "__main__":
    sys.exit(main())
