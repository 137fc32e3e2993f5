"""How each engine converts a model, loads it and is called: one file per engine, run by that engine's own Python.

An adapter imports its engine, numpy and the standard library, because it runs where bevel is not installed
(`worker.load_adapter`); of bevel it may import its neighbour `onnx_to_torch` alone. The adapter of bevel itself is the exception,
and needs no `prepare`. The two functions of an adapter:

`prepare(files, precision, shapes, samples, folder)` writes the engine's own files into `folder`:

* `files`: the ONNX file first, then its external data;
* `precision`: "fp32", or "int8" for the engine's own post-training quantization;
* `shapes`: the shape of every model input, all extents known;
* `samples`: .npz files of calibration inputs, one sample each in the model's shapes; empty for "fp32".

`load(folder, threads, inputs, outputs)` opens them with `inputs` bound once and gives `(call, read, facts)`:

* `call()` runs the engine once and returns when the outputs are there;
* `read()` gives the outputs as arrays, in the order of `outputs`, the names of the model's outputs;
* `facts` says what runs: `version`; where the engine tells it `isa`, the instruction set of its kernels; and `beyond_cap`,
  the kernels that no cap reaches.
"""
