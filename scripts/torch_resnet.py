"""ResNet 6n+2 for CIFAR in PyTorch (He et al. 2016, section 4.2), with the usual module names: what models/resnet.cpp is."""
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, option):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.pad = 0
        self.shortcut = nn.Sequential()
        if inputs != outputs and option == "A":
            self.pad = outputs // 4
        elif inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            return self.relu(h + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)))
        return self.relu(h + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, depth=20, option="A", classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        inputs = 16
        for stage, outputs in enumerate((16, 32, 64), start=1):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(Block(inputs, outputs, 2 if stage > 1 and i == 0 else 1, option))
                inputs = outputs
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.layer3(self.layer2(self.layer1(h)))
        return self.linear(h.mean(dim=(2, 3)))
