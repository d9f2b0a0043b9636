"""Training of the restoration network DiffRIR: a teacher that sees the truth (S1), then what is served (S2).

S2 learns first its encoder and denoiser alone, to draw the teacher's prior, then all of it together; a third step
may sharpen it against a discriminator (LLMGA.md §6.3). One recipe is one step:

    accelerate launch -m training.restoration --recipe training/recipes/restoration-x1-s1.yaml
    accelerate launch -m training.restoration --recipe training/recipes/restoration-x1-s2.yaml
    accelerate launch -m training.restoration --recipe training/recipes/restoration-x1-gan.yaml

The tiny variant, on the world's scenes, takes a CPU of two cores about a quarter of an hour:

    accelerate launch -m training.restoration --recipe training/recipes/tiny-restoration-s1.yaml
    accelerate launch -m training.restoration --recipe training/recipes/tiny-restoration-s2.yaml
    python -m training.restoration.figures runs/restoration/export --sheet runs/restoration/sheet.png

Weights that were published as pickles are converted once:

    python -m training.restoration.convert net_g_latest.pth models/diffrir-x2
"""
