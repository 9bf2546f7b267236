"""Recipes: a reproduction as the very commands a person would type.

`projects/<name>/recipe.toml`:

    title = "SIGA: self-supervised implicit glyph attention (CVPR 2023)"
    model = "siga/TRBA"                       # registry row of the reader that the last step evaluates

    [paper]                                   # figures to stand beside ours; only as far as a source gives them
    data = "MJSynth + SynthText, 36 characters, case-insensitive"
    source = "the paper's poster"
    [[paper.rows]]
    name = "SIGA_R"
    accuracy = { IIIT5k_3000 = 95.9, SVT = 92.7 }      # keys are the folder names of the evaluation sets, values %

    [smoke]                                   # one table a scale: smoke, cpu, gpu, paper
    note = "two minutes; tests the commands, learns nothing"
    corpus = "{strlab} data synth {data} …"   # run once if --data is not given; {data} is then data/synth-<scale>
    model = "siga/TRBA"                       # optional here, overrides the one above
    evaluate = "{out}/run/best_score.pth"     # checkpoint that `strlab eval` reads at the end; "" for none
    evaluate_data = "{data}/evaluation"       # default
    evaluate_flags = "--max-samples 200"      # optional, further flags of `strlab eval`
    run = "{out}/run"                         # folder of the run that the report shows (metrics.jsonl, …)

    [[smoke.steps]]
    name = "masks"
    run = '''{python} projects/siga/mask_create/generate_mask.py --input {data}/training
             --output {out}/masks'''          # line ends are blanks; no shell: no pipes, no variables but the placeholders
    outputs = ["{out}/masks"]                 # optional: the step counts as finished only while these exist
    [[smoke.steps]]
    name = "train"
    run = "{python} projects/siga/train.py … --resume auto"

    [sanity]                                  # `strlab sanity NAME`: overfits 64 images; same keys as a scale
    corpus = "…"
    steps = [{ name = "train", run = "…" }]
    evaluate = "…"
    evaluate_data = "{data}/training"
    at_least = 95.0                           # % of words, 36-character protocol

Placeholders: {data} {out} {python} {strlab} {device} (cpu or cuda) {scale}. Paths with blanks are safe: a command is split
first and filled in afterwards. A step that was interrupted is run again, so its command must resume by itself.
`projects/<name>/report.py: build(run_dir: Path, recipe: Recipe) -> common.infer.report.Report` is used for the report if it is there.
"""
