# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Reads a tfdbg v2 dump with TensorFlow's DebugDataReader and prints all of it as JSON.

    python read_tfdbg.py FOLDER

A program of its own, as TensorFlow lives in an environment of its own
(requirements_tensorflow.txt): it wants other versions than the other libraries.
"""

import json
import sys

from tensorflow.python.debug.lib import debug_events_reader


def read(folder):
    with debug_events_reader.DebugDataReader(folder) as reader:
        reader.update()
        executions = []
        for execution in reader.executions():
            host, frames = reader.read_execution_stack_trace(execution)
            ((file, line, _),) = frames
            executions.append(
                {
                    "op_type": execution.op_type,
                    "wall_time": execution.wall_time,
                    "mode": execution.tensor_debug_mode,
                    "values": execution.debug_tensor_values,
                    "outputs": execution.output_tensor_ids,
                    "inputs": execution.input_tensor_ids,
                    "graph": execution.graph_id,
                    "devices": [
                        reader.device_name_by_id(device)
                        for device in execution.output_tensor_device_ids
                    ],
                    "source": reader.source_lines(host, file)[line - 1],
                }
            )
        return {
            "start": reader.starting_wall_time(),
            "run": reader.tfdbg_run_id(),
            "version": reader.tensorflow_version(),
            "graphs": len(reader.outermost_graphs()),
            "traces": reader.num_graph_execution_traces(),
            "executions": executions,
        }


if __name__ == "__main__":
    json.dump(read(sys.argv[1]), sys.stdout)
