// The factories behind the registry, and what they share.
#pragma once
#include "linnet/model.h"

namespace linnet {

template <int n>
std::unique_ptr<Module> residual_net(const Scope&, const ModelOptions&);  // resnet.cpp
template <int n>
std::unique_ptr<Module> plain_net(const Scope&, const ModelOptions&);
std::unique_ptr<Module> convnet(const Scope&, const ModelOptions&);  // convnet.cpp
std::unique_ptr<Module> convnet_without_bn(const Scope&, const ModelOptions&);
std::unique_ptr<Module> convnet_postbn(const Scope&, const ModelOptions&);
std::unique_ptr<Module> mlp(const Scope&, const ModelOptions&);  // mlp.cpp
std::unique_ptr<Module> linear_model(const Scope&, const ModelOptions&);

// Error(Exit::usage) if the images are smaller than the model's strides can take.
void require_image(const char* model, const ModelOptions&, int smallest);

}  // namespace linnet
