"""The messages of onnx.proto, as tables: what the reader reads of them.

A number that is not here is skipped: doc strings and metadata of nodes and values, training
information, quantization annotations, descriptions of devices.
"""

from __future__ import annotations

from fanlight.formats.onnx_model import Kind
from fanlight.formats.protobuf import WEIGHTS, read_schema

SCHEMA = read_schema(
    {
        "Model": "1 ir_version int, 2 producer_name string, 3 producer_version string,"
        " 4 domain string, 5 model_version int, 6 doc_string string, 7 graph Graph,"
        " 8 opset_import OperatorSetId*, 14 metadata_props StringStringEntry*,"
        " 25 functions Function*",
        "Graph": "1 node Node*, 2 name string, 5 initializer Tensor*, 10 doc_string string,"
        " 11 input ValueInfo*, 12 output ValueInfo*, 13 value_info ValueInfo*,"
        " 15 sparse_initializer SparseTensor*, 16 metadata_props StringStringEntry*",
        "Node": "1 input string*, 2 output string*, 3 name string, 4 op_type string,"
        " 5 attribute Attribute*, 7 domain string, 8 overload string",
        "Attribute": "1 name string, 2 f float, 3 i int, 4 s bytes, 5 t Tensor, 6 g Graph,"
        " 7 floats float*, 8 ints int*, 9 strings bytes*, 10 tensors Tensor*, 11 graphs Graph*,"
        " 14 tp Type, 15 type_protos Type*, 20 type int, 21 ref_attr_name string,"
        " 22 sparse_tensor SparseTensor, 23 sparse_tensors SparseTensor*",
        "Function": "1 name string, 4 input string*, 5 output string*, 6 attribute string*,"
        " 7 node Node*, 9 opset_import OperatorSetId*, 10 domain string,"
        " 11 attribute_proto Attribute*, 12 value_info ValueInfo*, 13 overload string",
        "Tensor": "1 dims int*, 2 data_type int, 3 segment bytes, 4 float_data floats,"
        " 5 int32_data varints, 6 string_data strings, 7 int64_data varints, 8 name string,"
        " 9 raw_data raw, 10 double_data floats, 11 uint64_data varints,"
        " 13 external_data StringStringEntry*, 14 data_location int",
        "SparseTensor": "1 values Tensor, 2 indices Tensor, 3 dims int*",
        "ValueInfo": "1 name string, 2 type Type",
        "Type": "1 tensor_type TensorType, 4 sequence_type ElementType, 5 map_type MapType,"
        " 7 opaque_type OpaqueType, 8 sparse_tensor_type TensorType, 9 optional_type ElementType",
        "TensorType": "1 elem_type int, 2 shape TensorShape",
        "ElementType": "1 elem_type Type",
        "MapType": "1 key_type int, 2 value_type Type",
        "OpaqueType": "1 domain string, 2 name string",
        "TensorShape": "1 dim Dimension*",
        "Dimension": "1 dim_value int, 2 dim_param string",
        "OperatorSetId": "1 domain string, 2 version int",
        "StringStringEntry": "1 key string, 2 value string",
    }
)

# AttributeProto.AttributeType → what it is called here, the field that holds it
ATTRIBUTES: dict[int, tuple[Kind, str]] = {
    1: ("float", "f"),
    2: ("int", "i"),
    3: ("string", "s"),
    4: ("tensor", "t"),
    5: ("graph", "g"),
    6: ("floats", "floats"),
    7: ("ints", "ints"),
    8: ("strings", "strings"),
    9: ("tensors", "tensors"),
    10: ("graphs", "graphs"),
    11: ("sparse_tensor", "sparse_tensor"),
    12: ("sparse_tensors", "sparse_tensors"),
    13: ("type", "tp"),
    14: ("types", "type_protos"),
}

DATA_FIELDS = tuple(
    dict.fromkeys(f.name for f in SCHEMA["Tensor"].tags.values() if f.kind in WEIGHTS)
)
