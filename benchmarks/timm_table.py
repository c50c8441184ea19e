"""Which of timm's networks trace, quantize and export, and what onnxruntime then runs on integers.

    pip install timm                                      # only for this
    python benchmarks/timm_table.py                       # what is in results/timm_table.json already is kept
    python benchmarks/timm_table.py --only resnet18,swin_tiny_patch4_window7_224 --again

One network of each kind, mostly the smallest, with random weights (nothing is downloaded) as `zoo.py` sets them: the
figures are about operators, not accuracy. Each network has a process of its own with a time and memory limit.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from zoo import circumstances, in_a_process, keep, measure, told

RESULT = Path(__file__).parent / "results" / "timm_table.json"
# Networks that take images of any size are measured at this one, the others at their own.
SIDE = 128
ANY_SIZE = [
    "tf_efficientnet_lite0",
    "efficientvit_b0",
    "efficientnet_b0",
    "tf_efficientnet_b0",
    "efficientnet_lite0",
    "efficientnet_es",
    "tf_mobilenetv3_small_minimal_100",
    "tf_mixnet_s",
    "mixnet_s",
    "resnet18",
    "resnet26d",
    "resnetv2_50",
    "seresnext26t_32x4d",
    "ecaresnet26t",
    "regnetx_002",
    "regnety_002",
    "mobilenetv1_100",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "fbnetc_100",
    "lcnet_050",
    "tinynet_e",
    "mnasnet_small",
    "spnasnet_100",
    "mobileone_s0",
    "ghostnet_050",
    "repghostnet_050",
    "repvit_m0_9",
    "repvgg_a0",
    "dla46_c",
    "cs3darknet_s",
    "ese_vovnet19b_dw",
    "selecsls42",
    "hgnetv2_b0",
    "gernet_s",
    "rexnet_100",
    "convnext_atto",
    "convnextv2_atto",
    "inception_next_atto",
    "fastvit_t8",
    "starnet_s1",
    "edgenext_xx_small",
    "mobilevitv2_050",
    "poolformer_s12",
    "pvt_v2_b0",
    "mambaout_femto",
]
OWN_SIZE = [
    "mobilevit_xxs",
    "mobilevit_s",
    "tiny_vit_5m_224",
    "swin_tiny_patch4_window7_224",
    "efficientvit_m0",
    "efficientformerv2_s0",
    "levit_128s",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "crossvit_tiny_240",
    "convit_tiny",
    "xcit_nano_12_p16_224",
    "pit_ti_224",
    "visformer_tiny",
    "mixer_s32_224",
    "resmlp_12_224",
    "gmlp_s16_224",
    "botnet26t_256",
    "bat_resnext26ts",
    "shvit_s1",
    "mvitv2_tiny",
]


@click.command()
@click.option("--only", default="", help="Names, separated by commas; default all of the list.")
@click.option("--again", is_flag=True, help="Measure anew what the result file has.")
@click.option("--timeout", default=200.0, show_default=True, help="Seconds per network.")
@click.option("--memory", default=12.0, show_default=True, help="Address space per network, in GiB.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULT, show_default=True)
@click.option("--worker", hidden=True)
def main(only: str, again: bool, timeout: float, memory: float, out: Path, worker: str | None) -> None:
    """Measure the networks one by one, and keep each row as soon as it is there."""
    if worker is not None:
        click.echo(json.dumps(measure(f"timm:{worker}", lambda own, _: SIDE if worker in ANY_SIZE else own)))
        return
    import timm

    names = [*ANY_SIZE, *OWN_SIZE]
    wanted = only.split(",") if only else names
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise click.UsageError(f"unknown networks {unknown}; there are {', '.join(names)}")
    result = json.loads(out.read_text()) if out.is_file() else {"rows": {}}
    result |= circumstances("python benchmarks/timm_table.py")
    result["versions"]["timm"] = timm.__version__
    for name in wanted:
        if name in result["rows"] and not again:
            continue
        row = in_a_process(__file__, name, timeout, memory)
        result["rows"][name] = row | {"commit": result["commit"]}
        keep(result, out)
        click.echo(f"{name}: {told(row)}")


if __name__ == "__main__":
    main()
