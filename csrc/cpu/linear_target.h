// What every file of the linear kernels includes before it switches an instruction set on.
#pragma once
#include "cpu/gelu_table.h"
#include "cpu/linear.h"
#include "cpu/target.h"
