"""One run of LightlyTrain's distillation, as its documentation shows it; run by the Python of its own virtual environment.

    VENV/bin/python -I benchmarks/lightly_child.py ARGUMENTS.json

The file holds the arguments of `lightly_train.pretrain`. Where "convolutional_teacher" names a timm network, the teacher is
that network with the weights of "teacher_weights" in the documented wrapper of a custom model: LightlyTrain 0.18.0 stops at
the name timm/tf_efficientnet_lite0 ("expanded size of the tensor (1280) must match the existing size (320)").
"""

import json
import sys

import timm
import torch


class Wrapped(torch.nn.Module):
    """A timm network without its classifier, as "Custom Models" of the documentation asks for it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def get_model(self):
        return self.network

    def forward_features(self, images_BCHW):
        return {"features": self.network.forward_features(images_BCHW)}

    def forward_pool(self, found):
        return {"pooled_features": found["features"].mean((2, 3), keepdim=True)}

    def feature_dim(self):
        return self.network.num_features

    def architecture_info(self):
        return {"model_type": "convolutional", "norm_type": "batchnorm"}


def main():
    import lightly_train

    with open(sys.argv[1], encoding="utf-8") as handle:
        arguments = json.load(handle)
    name = arguments.pop("convolutional_teacher", None)
    if name:
        network = timm.create_model(name)
        network.load_state_dict(torch.load(arguments["method_args"].pop("teacher_weights"), weights_only=True))
        arguments["method_args"]["teacher"] = Wrapped(network.eval())
    lightly_train.pretrain(**arguments)


if __name__ == "__main__":
    main()
