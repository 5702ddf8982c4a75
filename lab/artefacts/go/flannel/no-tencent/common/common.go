// Package common takes the place of the Tencent cloud's SDK, which flannel's backend
// "tencent-vpc" imports and which can't be had as a module: just enough to compile.
package common

// BoolPtr gives a pointer to the value.
func BoolPtr(value bool) *bool { return &value }

// StringPtr gives a pointer to the value.
func StringPtr(value string) *string { return &value }

// StringPtrs gives a pointer to each of the values.
func StringPtrs(values []string) []*string {
	pointers := make([]*string, len(values))
	for i := range values {
		pointers[i] = &values[i]
	}
	return pointers
}
