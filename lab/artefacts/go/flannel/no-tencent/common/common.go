// Package common is a stub of the Tencent Cloud SDK, with just enough to compile flannel's "tencent-vpc"
// backend. The SDK itself isn't available as a module.
package common

// BoolPtr returns a pointer to the value.
func BoolPtr(value bool) *bool { return &value }

// StringPtr returns a pointer to the value.
func StringPtr(value string) *string { return &value }

// StringPtrs returns a pointer to each of the values.
func StringPtrs(values []string) []*string {
	pointers := make([]*string, len(values))
	for i := range values {
		pointers[i] = &values[i]
	}
	return pointers
}
