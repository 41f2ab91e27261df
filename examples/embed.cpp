// One image from a prompt, in C++.
//
//     embed_cpp MODEL PROMPT OUT.png      MODEL: a bundle's folder, or a model's name such as tiny
//
// $ARCFLOW_ONNXRUNTIME names libonnxruntime.so where the loader does not find it by itself.
#include <arcflow/arcflow.hpp>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: " << argv[0] << " MODEL PROMPT OUT.png\n";
    return 2;
  }
  try {
    const arcflow::Context context;
    const arcflow::Model model = context.open(argv[1]);  // Share it between threads ...
    arcflow::Session session = model.session();          // ... and give each a session.

    arcflow::Request request;
    request.prompts = {argv[2]};
    request.on_step = [](const ArcflowStep& step) {  // What it throws would end the request.
      std::cout << "evaluation " << step.index + 1 << " of " << step.total << ": sigma " << step.sigma_from << " to "
                << step.sigma_to << '\n';
    };
    const arcflow::Result result = session.generate(request);

    std::ofstream file(argv[3], std::ios::binary);
    file << arcflow::encode_png(result.image(0), model.describe(request));
    if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + argv[3]);
    std::cout << argv[3] << ": " << result.shape.width << " x " << result.shape.height << " px in "
              << result.output.total_seconds << " s\n";
    return 0;
  } catch (const std::exception& error) {  // arcflow::Error has a code() as well.
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
}
