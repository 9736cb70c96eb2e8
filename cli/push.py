"""`ossicle push`: a bundle, with a model card, to a repository of the Hugging Face hub."""

from typing import Annotated

import typer
from rich.filesize import decimal

from .common import Bundle, Json, app, guarded, print_json


@app.command(epilog="Example: ossicle push voxtral-int4 org/voxtral-int4 --license apache-2.0 --base-model org/voxtral")
@guarded
def push(
    bundle: Bundle,
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Made where there is none.")],
    license_: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="For the card, such as apache-2.0. Never guessed.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", metavar="ORG/NAME", help="For the card: what it was built from.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a repository that only you see.")] = False,
    no_audio: Annotated[
        bool, typer.Option("--no-audio", help="Leave the recordings out of verification.html; the texts stay.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be uploaded, and the card.")] = False,
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Upload a bundle that failed verification, or had none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a bundle with its measured table as a model card."""
    from ..compiler.push import prepare
    from ..compiler.push import push as upload_to

    upload = prepare(
        bundle, repository, license_=license_, base=base_model, audio=not no_audio, allow_failed=allow_failed
    )
    address = None if dry_run else upload_to(upload, private=private)
    if as_json:
        files = [{"path": path, "bytes": size} for path, size in upload.files]
        print_json({"repository": repository, "files": files, "card": upload.card, "commit": address})
        return
    if dry_run:
        for path, size in upload.files:
            typer.echo(f"{decimal(size):>10}  {path}")
        typer.echo(f"{len(upload.files)} files, {decimal(upload.size)}, would go to {repository} with this card:\n")
        typer.echo(upload.card)
    else:
        typer.echo(f"{len(upload.files)} files, {decimal(upload.size)}: {address}")
