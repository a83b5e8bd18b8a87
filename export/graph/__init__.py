"""The ONNX graph: translated from the student, rewritten for engines, and typed for each precision."""
