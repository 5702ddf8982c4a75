// Package v20170312 is a stub of the Tencent Cloud API client that flannel's "tencent-vpc" backend uses. All
// calls fail, so this build of flannel doesn't support that backend.
package v20170312

import "errors"

var errNoSDK = errors.New("flannel was built without the Tencent Cloud SDK: choose another backend")

// Filter selects route tables.
type Filter struct {
	Name   *string
	Values []*string
}

// Route is an entry in a route table.
type Route struct {
	RouteId              *uint64
	DestinationCidrBlock *string
	GatewayType          *string
	GatewayId            *string
	RouteType            *string
	Enabled              *bool
}

// RouteTable is a route table.
type RouteTable struct {
	RouteTableId *string
	RouteSet     []*Route
}

// DescribeRouteTablesRequest asks for route tables.
type DescribeRouteTablesRequest struct{ Filters []*Filter }

// DescribeRouteTablesResponse lists route tables.
type DescribeRouteTablesResponse struct {
	Response *struct{ RouteTableSet []*RouteTable }
}

// CreateRoutesRequest asks to create routes.
type CreateRoutesRequest struct {
	RouteTableId *string
	Routes       []*Route
}

// CreateRoutesResponse is the response to CreateRoutesRequest.
type CreateRoutesResponse struct{}

// DeleteRoutesRequest asks to delete routes.
type DeleteRoutesRequest struct {
	RouteTableId *string
	Routes       []*Route
}

// DeleteRoutesResponse is the response to DeleteRoutesRequest.
type DeleteRoutesResponse struct{}

// Client is the API client.
type Client struct{}

// NewClientWithSecretId always fails.
func NewClientWithSecretId(_, _, _ string) (*Client, error) { return nil, errNoSDK }

// NewDescribeRouteTablesRequest returns an empty request.
func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return &DescribeRouteTablesRequest{}
}

// NewCreateRoutesRequest returns an empty request.
func NewCreateRoutesRequest() *CreateRoutesRequest { return &CreateRoutesRequest{} }

// NewDeleteRoutesRequest returns an empty request.
func NewDeleteRoutesRequest() *DeleteRoutesRequest { return &DeleteRoutesRequest{} }

// DescribeRouteTables always fails. flannel ignores NewClientWithSecretId's error, so the client may be nil.
func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errNoSDK
}

// CreateRoutes always fails.
func (*Client) CreateRoutes(*CreateRoutesRequest) (*CreateRoutesResponse, error) {
	return nil, errNoSDK
}

// DeleteRoutes always fails.
func (*Client) DeleteRoutes(*DeleteRoutesRequest) (*DeleteRoutesResponse, error) {
	return nil, errNoSDK
}
