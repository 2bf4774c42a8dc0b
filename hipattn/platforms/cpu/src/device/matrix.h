// Matrix instructions.
#pragma once
